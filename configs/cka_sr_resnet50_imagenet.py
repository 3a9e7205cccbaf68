"""ResNet-50 with CKA-SR on ImageNet-1K, dense: pre-training, table 4.

Train: tools/train.py configs/cka_sr_resnet50_imagenet.py
Published top-1 accuracy (arXiv 2307.07389, appendix): 76.15 without CKA-SR, 76.39
with it. Cheaper settings (docs/cka_sr.md), by --cfg-options:
    custom_hooks.0.samples=8 custom_hooks.0.interval=5
"""
# The host's recipe, 100 epochs: the paper does not give its pre-training recipe.
_base_ = 'mmpretrain::resnet/resnet50_8xb32_in1k.py'

custom_imports = dict(imports=['ela_mm'], allow_failed_imports=False)

# The weight that the released code has for ResNet-18; it has none for ResNet-50.
custom_hooks = [
    dict(
        type='CKARegularizationHook', weight=1e-5, samples=-1, interval=1),
    dict(type='ReseedHook')  # runs of one seed see the same batches
]
