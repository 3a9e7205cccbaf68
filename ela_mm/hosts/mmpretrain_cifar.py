"""He et al.'s ResNets for small pictures, of basic blocks, on MMPretrain."""
from mmpretrain.models.backbones.resnet import BasicBlock
from mmpretrain.registry import MODELS

from .mmpretrain import ELAResNet_CIFAR


@MODELS.register_module()
class ELABasicResNet_CIFAR(ELAResNet_CIFAR):
    """ResNet of 6 n + 2 layers for small pictures, with layer attention.

    "Deep Residual Learning for Image Recognition" (arXiv 1512.03385), section
    4.2: three stages of n basic blocks with 16, 32 and 64 channels, which is
    what CKA-SR was tried on. Shortcuts that change width are mmpretrain's 1x1
    convolutions. mmpretrain's ResNet_CIFAR has ImageNet's depths alone, and
    :class:`ELAResNet_CIFAR` the bottlenecks of ELA's paper.

    Args:
        depth (int): 20, 56 or 110.
        **kwargs: As of :class:`ELAResNet_CIFAR`; ``attention=None`` for the
            plain network.

    Raises:
        KeyError: On another depth.
    """

    arch_settings = {
        depth: (BasicBlock, ((depth - 2) // 6, ) * 3)
        for depth in (20, 56, 110)
    }
