"""A small detector on pictures of digits."""
import torch
from mmengine.config import Config
from mmengine.utils import digit_version

from support import ROOT

# torch knows the demo's fused AdamW on CPUs since 2.4.
FUSED_ON_CPUS = digit_version(torch.__version__) >= digit_version('2.4')


def small_config(root, masks=False) -> Config:
    """The demo's config, with a small network on a few pictures."""
    cfg = Config.fromfile(ROOT / 'configs' / 'faster_rcnn_ela_r50_digits.py')
    cfg.model.backbone.update(depth=34, base_channels=16)
    cfg.model.neck.in_channels = [16, 32, 64, 128]
    cfg.model.test_cfg.rcnn.score_thr = 0.0
    for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        cfg[loader].dataset.data_root = str(root) + '/'
        cfg[loader].update(num_workers=0, persistent_workers=False)
    for evaluator in ('val_evaluator', 'test_evaluator'):
        cfg[evaluator].ann_file = str(root / 'val.json')
    cfg.train_cfg.update(max_epochs=3, val_interval=3)
    cfg.optim_wrapper.optimizer.fused = FUSED_ON_CPUS
    cfg.custom_hooks[0].windows = [(1, 1), (3, 3)]
    cfg.default_hooks.checkpoint.max_keep_ckpts = -1
    return cfg
