"""Computes the width inside of modules that squeeze channels."""
from ...errors import UsageError


def squeezed_channels(channels: int, reduction: int) -> int:
    """Compute the channels inside a module that squeezes by a reduction.

    Args:
        channels (int): C, number of channels outside.
        reduction (int): r, the reduction.

    Returns:
        int: C / r, rounded down.

    Raises:
        UsageError: If no channel is left, or r is not positive.
    """
    if reduction < 1 or channels < reduction:
        raise UsageError(
            f'reduction={reduction} leaves no channel of {channels}: choose '
            'one from 1 to the channels of the narrowest stage that has the '
            'module')
    return channels // reduction
