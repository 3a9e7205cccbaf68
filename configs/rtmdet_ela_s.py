"""RTMDet-s with ELA-CSPNeXt on COCO, 300 epochs.

Train: tools/train.py configs/rtmdet_ela_s.py
Its stages have 1, 2, 2 and 1 blocks, so that two layers can be pruned; larger
RTMDets have more. Windows are near the start and half way, as the paper has them
for ImageNet; alpha, beta and mu are its values for COCO.
"""
_base_ = 'mmdet::rtmdet/rtmdet_s_8xb32-300e_coco.py'

custom_imports = dict(imports=['ela_mm'], allow_failed_imports=False)

model = dict(backbone=dict(type='ELACSPNeXt', zero_init_attention=True))

# gamma is this project's choice (docs/choices.md).
custom_hooks = [
    dict(
        type='ELAPruneHook',
        windows=[(1, 3), (151, 153)],
        criterion=dict(type='EBQM', gamma=0.75, alpha=2.0, beta=5.0, mu=0.2)),
    dict(type='ReseedHook'),  # runs of one seed see the same batches
    *_base_.custom_hooks,
]
