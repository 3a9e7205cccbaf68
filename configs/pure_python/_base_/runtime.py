"""The common part of this folder's configs: measuring, skipping, logging, saving."""
from mmengine.hooks import (
    CheckpointHook,
    DistSamplerSeedHook,
    IterTimerHook,
    LoggerHook,
    ParamSchedulerHook,
)
from mmengine.visualization import LocalVisBackend

from ela_mm import ELAPruneHook, ReseedHook, ebqm

# Types are classes, not names: no registry is asked, so no scope is needed.
default_scope = None

default_hooks = dict(
    timer=dict(type=IterTimerHook),
    logger=dict(type=LoggerHook, interval=10),
    param_scheduler=dict(type=ParamSchedulerHook),
    checkpoint=dict(type=CheckpointHook, interval=1, max_keep_ckpts=2),
    sampler_seed=dict(type=DistSamplerSeedHook))

# The paper's settings for CIFAR, which fit small images and training from scratch.
custom_hooks = [
    dict(
        type=ELAPruneHook,
        windows=[(1, 1), (3, 3)],
        criterion=dict(type=ebqm, gamma=0.75, alpha=5.0, beta=1.0, mu=0.3)),
    dict(type=ReseedHook)  # runs of one seed see the same batches
]
visualizer = dict(
    vis_backends=[dict(type=LocalVisBackend)], name='visualizer')
env_cfg = dict(
    cudnn_benchmark=False,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl'))
log_level = 'INFO'
load_from = None
resume = False
randomness = dict(seed=0)
