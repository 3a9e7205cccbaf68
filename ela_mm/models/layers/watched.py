"""How others see attention's modules: hooks, wrappers, and the order of children.

Attention has a fast form that reads the parameters of its modules and does not
call them (:mod:`ela_mm.models.layers.bank`). That is right only where nobody
waits for the call.
"""
from typing import Iterator, Tuple

from torch import nn
from torch.nn.modules import module as globally
from torch.nn.modules.batchnorm import _NormBase

# Those of all modules. torch fills these dicts and never replaces them.
_GLOBAL_HOOKS = (globally._global_forward_hooks,
                 globally._global_forward_pre_hooks,
                 globally._global_backward_hooks,
                 globally._global_backward_pre_hooks)
_NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm)


def is_watched(module: nn.Module) -> bool:
    """Tell whether somebody waits for a module to be called.

    Args:
        module (nn.Module): Any. Its children are not looked at.

    Returns:
        bool: True if a hook is registered on the module or on all modules, or
        its ``forward`` was replaced. ``torch.nn.utils.prune`` and Grad-CAM
        work by hooks; parametrizations and LoRA change the module's type.
    """
    return has_hooks(module) or any(_GLOBAL_HOOKS)


def has_hooks(module: nn.Module) -> bool:
    """Tell whether somebody waits for this very module to be called."""
    # Spelled out: it is asked of every module of attention at every step.
    return bool('forward' in module.__dict__ or module._forward_hooks
                or module._forward_pre_hooks or module._backward_hooks
                or module._backward_pre_hooks)


class BranchedModule(nn.Module):
    """A module whose children do not run one after the other.

    Tools that fold a norm into the convolution before it, such as
    ``mmcv.cnn.fuse_conv_bn``, take the order of children for the flow of data.
    Here norms are listed first, so that none seems to follow a convolution.
    The order of parameters, which optimizers save by number, stays; so does
    that of ``named_modules``, where a module without parameters therefore
    stands between each convolution and the norm after it.
    """

    def named_children(self) -> Iterator[Tuple[str, nn.Module]]:
        """Yield names and children, norms first."""
        children = list(super().named_children())
        return iter(
            sorted(children, key=lambda child: not isinstance(child[1], _NORMS)))
