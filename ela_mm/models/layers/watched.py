"""What other tools expect of attention's modules: calls, and an order of children.

The fast form of attention (:mod:`ela_mm.models.layers.bank`) reads the parameters
of its modules without calling them. That is right only where no hook and no
replaced ``forward`` expects a call.
"""
from typing import Iterator, Tuple

from torch import nn
from torch.nn.modules import module as globally
from torch.nn.modules.batchnorm import _NormBase

# Hooks registered on all modules. torch fills these dicts, never replaces them.
_GLOBAL_HOOKS = (globally._global_forward_hooks,
                 globally._global_forward_pre_hooks,
                 globally._global_backward_hooks,
                 globally._global_backward_pre_hooks)
_NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm)


def is_watched(module: nn.Module) -> bool:
    """Tell whether a hook or a replaced ``forward`` expects a module to be called.

    Args:
        module (nn.Module): Any module. Its children are not inspected.

    Returns:
        bool: True if a hook is registered on the module or on all modules, or
        its ``forward`` was replaced. ``torch.nn.utils.prune`` and Grad-CAM
        work by hooks; parametrizations and LoRA change the module's type.
    """
    return has_hooks(module) or any(_GLOBAL_HOOKS)


def has_hooks(module: nn.Module) -> bool:
    """Tell whether the module itself has hooks or a replaced ``forward``."""
    # Spelled out for speed: this runs for every attention module at every step.
    return bool('forward' in module.__dict__ or module._forward_hooks
                or module._forward_pre_hooks or module._backward_hooks
                or module._backward_pre_hooks)


class BranchedModule(nn.Module):
    """A module whose children do not run one after the other.

    Tools that fold a norm into the convolution before it, such as
    ``mmcv.cnn.fuse_conv_bn``, take the order of children for the flow of data.
    Here norms are listed first, so that none seems to follow a convolution. The
    order of parameters stays as it is, since optimizers save them by number. So
    does the order of ``named_modules``, where a module without parameters
    separates each convolution from the norm after it.
    """

    def named_children(self) -> Iterator[Tuple[str, nn.Module]]:
        """Yield names and children, norms first."""
        children = list(super().named_children())
        return iter(
            sorted(children, key=lambda child: not isinstance(child[1], _NORMS)))
