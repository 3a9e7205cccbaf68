"""ResNet-50 with CKA-SR on ImageNet-1K, dense: pre-training, table 4.

Train: tools/train.py configs/cka_sr_resnet50_imagenet.py
Published (arXiv 2307.07389, appendix): 76.15 without, 76.39 with. For less
(docs/cka_sr.md), by --cfg-options:
    custom_hooks.0.samples=8 custom_hooks.0.interval=5
"""
# The host's recipe, 100 epochs: the paper's for pre-training is not known.
_base_ = 'mmpretrain::resnet/resnet50_8xb32_in1k.py'

custom_imports = dict(imports=['ela_mm'], allow_failed_imports=False)

# The weight is the released code's for ResNet-18; it gives none for ResNet-50.
custom_hooks = [
    dict(
        type='CKARegularizationHook', weight=1e-5, samples=-1, interval=1),
    dict(type='ReseedHook')  # runs of one seed see the same batches
]
