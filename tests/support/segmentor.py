"""A small segmentor on pictures of digits."""
from mmengine.config import Config

from support import ROOT


def small_config(root) -> Config:
    """The demo's config, with a small network on a few pictures."""
    cfg = Config.fromfile(ROOT / 'configs' / 'fpn_ela_r50_digits.py')
    cfg.model.data_preprocessor.size = (64, 64)
    cfg.model.backbone.update(depth=18, base_channels=16, stem_channels=8)
    cfg.model.neck.update(in_channels=[16, 32, 64, 128], out_channels=16)
    cfg.model.decode_head.update(in_channels=[16] * 4, channels=16)
    for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        cfg[loader].dataset.data_root = f'{root}/'
        cfg[loader].update(
            batch_size=2, num_workers=0, persistent_workers=False)
    cfg.train_cfg.update(max_iters=6, val_interval=3)
    cfg.param_scheduler[1].end = 60
    cfg.custom_hooks[0].windows = [(1, 2), (4, 5)]
    cfg.custom_hooks.append(dict(type='EMAHook', momentum=0.1))
    cfg.default_hooks.checkpoint.update(interval=3, max_keep_ckpts=-1)
    return cfg
