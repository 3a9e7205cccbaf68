"""Finds out which images a network takes."""
from torch import nn

from ...errors import UsageError


def picture_channels(network: nn.Module) -> int:
    """Find out how many channels the images for a network have.

    Args:
        network (nn.Module): Backbone, or a model that begins with one.

    Returns:
        int: Input channels of its first convolution; a quarter of them in a
        ``Focus``, which turns four neighbouring pixels into channels. 3 for a
        network such as T2T-ViT, which begins by unfolding the image.

    Raises:
        UsageError: If the network has no convolution.
    """
    focused = {
        id(part) for module in network.modules()
        if type(module).__name__ == 'Focus' for part in module.modules()
    }
    for module in network.modules():
        if isinstance(module, nn.Unfold):
            return 3
        if isinstance(module, nn.Conv2d):
            channels = module.in_channels
            return channels // 4 if id(module) in focused else channels
    raise UsageError(f'{type(network).__name__} has no convolution that says '
                     'how many channels a picture has')
