"""Runs of a Runner with any of the families, also of several processes.

    python -m torch.distributed.run ... -m support.family_runs FOLDER NAME ...
"""
import sys
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from mmengine.runner import Runner, load_checkpoint

from ela_mm.apis.launch import set_up_distributed
from support import ddp_toy  # noqa: F401  registers what watches the ranks
from support.families import FAMILIES, flat
from support.toy import ToyDataset, toy_config


@MODELS.register_module(force=True)
class FamilyClassifier(BaseModel):
    """A backbone of any family and a linear classifier of its outputs."""

    def __init__(self, backbone: dict, side: int = 32) -> None:
        super().__init__()
        self.side = side
        self.backbone = MODELS.build(backbone)
        self.backbone.eval()
        with torch.no_grad():
            pooled = self._pool(torch.zeros(2, 3, 32, 32))
        self.head = torch.nn.Linear(pooled.shape[1], 2)

    def _pool(self, inputs):
        outs = []
        if self.side != 32:
            inputs = torch.nn.functional.interpolate(inputs, self.side)
        for out in flat(self.backbone(inputs)):
            # TridentNet's branches stand one after the other in the batch.
            out = out.unflatten(0, (-1, len(inputs))).mean(0)
            outs.append(out.flatten(2).mean(2) if out.ndim > 2 else out)
        return torch.cat(outs, 1)

    def forward(self, inputs, targets=None, mode='tensor'):
        logits = self.head(self._pool(inputs))
        if mode == 'loss':
            return dict(
                loss=torch.nn.functional.cross_entropy(logits, targets))
        return logits


@MODELS.register_module(force=True)
class LastPooled(torch.nn.Module):
    """A neck that takes the last output of any family."""

    def forward(self, outs):
        out = flat(outs)[-1]
        return (out.flatten(2).mean(2) if out.ndim > 2 else out, )


def config(name, work_dir, hooks=(), **overrides) -> Config:
    return toy_config(
        work_dir, hooks=[dict(type='ReseedHook'),
                         dict(type='EMAHook', momentum=.1), *hooks],
        model=dict(_delete_=True, type='FamilyClassifier',
                   backbone=FAMILIES[name].config,
                   side=FAMILIES[name].side), **overrides)


def answers(path: Path) -> torch.Tensor:
    """What a checkpoint's network says to the pictures."""
    model = MODELS.build(Config.fromfile(
        next(path.parent.glob('*.py'))).model)
    strict = 'SwinTransformerV2' not in type(model.backbone).__name__
    load_checkpoint(model, str(path), map_location='cpu', strict=strict)
    model.eval()
    with torch.no_grad():
        return model(ToyDataset().images)


def write_answers(path: Path, target: Path) -> None:
    torch.save(answers(path), target)


if __name__ == '__main__':
    for family in sys.argv[2:]:
        cfg = config(
            family, Path(sys.argv[1]) / family, launcher='pytorch',
            hooks=[dict(type='Witness')],
            **{'train_dataloader.dataset.size': 12})
        if not torch.distributed.is_initialized():
            set_up_distributed(cfg)
            wrapper = cfg.model_wrapper_cfg
        cfg.model_wrapper_cfg = wrapper
        Runner.from_cfg(cfg).train()
