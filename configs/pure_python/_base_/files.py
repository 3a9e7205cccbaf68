"""The common part of the configs whose images are files."""
from mmengine.config import read_base
from mmengine.dataset import DefaultSampler
from mmengine.optim import LinearLR, OptimWrapper
from mmengine.runner import LogProcessor, TestLoop, ValLoop
from torch.optim import AdamW

with read_base():
    from .runtime import *

train_dataloader = dict(num_workers=1, persistent_workers=True)
val_dataloader = dict(
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type=DefaultSampler, shuffle=False))
val_cfg = dict(type=ValLoop)
test_cfg = dict(type=TestLoop)

optim_wrapper = dict(
    type=OptimWrapper,
    optimizer=dict(type=AdamW, weight_decay=0.05),
    clip_grad=dict(max_norm=10))
param_scheduler = [
    dict(type=LinearLR, start_factor=0.01, by_epoch=False, begin=0, end=30)
]
log_processor = dict(type=LogProcessor)
