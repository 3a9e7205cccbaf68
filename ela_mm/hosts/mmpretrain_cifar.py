"""He et al.'s ResNets of basic blocks for small images, on MMPretrain."""
from mmpretrain.models.backbones.resnet import BasicBlock
from mmpretrain.registry import MODELS

from .mmpretrain import ELAResNet_CIFAR


@MODELS.register_module()
class ELABasicResNet_CIFAR(ELAResNet_CIFAR):
    """ResNet of 6 n + 2 layers for small images, with layer attention.

    From "Deep Residual Learning for Image Recognition" (arXiv 1512.03385),
    section 4.2: three stages of n basic blocks with 16, 32 and 64 channels.
    CKA-SR's paper uses it. Shortcuts that change width are mmpretrain's 1x1
    convolutions. (mmpretrain's ResNet_CIFAR has only the depths for ImageNet,
    and :class:`ELAResNet_CIFAR` has the bottlenecks of ELA's paper.)

    Args:
        depth (int): Depth: 20, 56 or 110.
        **kwargs: Further arguments, as in :class:`ELAResNet_CIFAR`;
            ``attention=None`` gives the plain network.

    Raises:
        KeyError: On another depth.
    """

    arch_settings = {
        depth: (BasicBlock, ((depth - 2) // 6, ) * 3)
        for depth in (20, 56, 110)
    }
