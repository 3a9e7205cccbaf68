"""Attention modules of timm, which is imported when the first one is built."""
from torch import nn

from ...errors import UsageError


def timm_attention(name: str, channels: int, **kwargs) -> nn.Module:
    """Build one of timm's attention modules.

    Args:
        name (str): As timm's ``create_attn`` knows it. Beware of ``'ela'``:
            that is Efficient Local Attention (arXiv 2403.01123), another
            paper's module.
        channels (int): C.
        **kwargs: Of the module.

    Returns:
        nn.Module: From (B, C, H, W) to (B, C, H, W).

    Raises:
        UsageError: If timm is not installed.
    """
    try:
        from timm.layers import create_attn
    except ImportError as error:
        raise UsageError(f'attention {name!r} is built by timm, which cannot '
                         f'be imported ({error}): pip install timm') from error
    return create_attn(name, channels, **kwargs)
