"""What pictures a network is made for."""
from torch import nn

from ...errors import UsageError


def picture_channels(network: nn.Module) -> int:
    """Tell how many channels the pictures have that a network takes.

    Args:
        network (nn.Module): A backbone, or a model that starts with one.

    Returns:
        int: C_in of its first convolution; a quarter of it in a ``Focus``,
        which makes channels of four neighbouring pixels. 3 where a network
        such as T2T-ViT first unfolds pictures of whatever channels.

    Raises:
        UsageError: If it has no convolution.
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
