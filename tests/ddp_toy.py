"""Started by torchrun: the toy under DDP; every rank writes what it ended with.

Arguments: the folder, the windows as JSON, and a checkpoint to resume from.
"""
import json
import sys
from pathlib import Path

import torch
from mmengine.dist import get_rank
from toy import toy_config

from ela_mm.engine.launch import build_runner, set_up_distributed

if __name__ == '__main__':
    folder = Path(sys.argv[1])
    cfg = toy_config(folder, max_epochs=3, windows=json.loads(sys.argv[2]))
    cfg.launcher = 'pytorch'
    if len(sys.argv) > 3:
        cfg.resume, cfg.load_from = True, sys.argv[3]
    set_up_distributed(cfg)
    runner = build_runner(cfg)
    runner.train()
    module = runner.model.module
    reduced = [p for p in module.parameters() if p.requires_grad]
    torch.save(
        dict(
            state=module.state_dict(),
            decisions=runner.hooks and next(
                h for h in runner.hooks
                if type(h).__name__ == 'ELAPruneHook').decisions,
            in_buckets=runner.model._get_ddp_logging_data()
            ['num_parameter_tensors'],
            trainable=len(reduced)),
        folder / f'rank{get_rank()}.pth')
