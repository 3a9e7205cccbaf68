"""Builds attention modules of timm, which is imported only when needed."""
from torch import nn

from ...errors import UsageError


def timm_attention(name: str, channels: int, **kwargs) -> nn.Module:
    """Build one of timm's attention modules.

    Args:
        name (str): Name of the module in timm's ``create_attn``. Note that
            ``'ela'`` is Efficient Local Attention (arXiv 2403.01123), which
            has nothing to do with this package.
        channels (int): C, number of channels.
        **kwargs: Further arguments of the module.

    Returns:
        nn.Module: Module that maps (B, C, H, W) to (B, C, H, W).

    Raises:
        UsageError: If timm is not installed.
    """
    try:
        from timm.layers import create_attn
    except ImportError as error:
        raise UsageError(f'attention {name!r} is built by timm, which cannot '
                         f'be imported ({error}): pip install timm') from error
    return create_attn(name, channels, **kwargs)
