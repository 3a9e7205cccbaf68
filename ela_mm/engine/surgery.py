"""Takes skipped layers out of everything that a Runner has made of the model."""
import gc
from typing import Iterable, List, Set

from mmengine.model import MMSeparateDistributedDataParallel, is_model_wrapper
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..errors import UsageError
from ..models.backbones.layer_attention_mixin import find_backbone

# What others hang on a model wrapper.
_HOOKS = ('_forward_hooks', '_forward_pre_hooks', '_backward_hooks',
          '_backward_pre_hooks')


def check_parallelism(runner) -> None:
    """Check that pruning knows how the model is spread over processes.

    Args:
        runner (Runner | FlexibleRunner): With its model wrapped.

    Raises:
        UsageError: On anything but a plain model, MMDistributedDataParallel,
            or FlexibleRunner's SingleDeviceStrategy.
    """
    strategy = getattr(runner, 'strategy', None)  # FlexibleRunner has one
    name = type(runner.model).__name__
    if strategy is not None:
        name = type(strategy).__name__
        known = name == 'SingleDeviceStrategy'
    elif is_model_wrapper(runner.model):
        known = isinstance(runner.model, DistributedDataParallel) and (
            not isinstance(runner.model, MMSeparateDistributedDataParallel))
    else:
        known = True
    if not known:
        raise UsageError(
            f'ELAPruneHook cannot prune under {name}: it would have to shard '
            'or sort parameters anew. Expected Runner with no model wrapper '
            "or MMDistributedDataParallel (leave out runner_type, strategy "
            'and model_wrapper_cfg), or FlexibleRunner with '
            'SingleDeviceStrategy')


def skip(runner, names: List[str], mode: str) -> None:
    """Skip layers in the model, its averages and its optimizer, and wrap anew.

    Args:
        runner (Runner): While it trains.
        names (List[str]): Of attention layers.
        mode (str): ``'layer'`` or ``'retrieval'``.
    """
    backbone = find_backbone(runner.model)
    backbone.skip_layers(names, mode)
    for hook in runner.hooks:
        averaged = getattr(hook, 'ema_model', None)
        if averaged is not None:
            find_backbone(averaged).skip_layers(names, mode)
    skipped = {p for p in backbone.parameters() if not p.requires_grad}
    wrapper = runner.optim_wrapper
    wrappers = wrapper.values() if hasattr(wrapper, 'values') else [wrapper]
    for wrapper in wrappers:  # momentum of a skipped layer is dead weight
        for parameter in skipped.intersection(wrapper.optimizer.state):
            del wrapper.optimizer.state[parameter]
    wrap_anew(runner)


def wrap_anew(runner) -> None:
    """Let DDP sort its buckets anew, without the skipped parameters.

    Parameters that others have frozen for a while stay in the buckets, as DDP
    itself has it: released, they are exchanged again. What hung on the old
    wrapper moves to the new one.

    Args:
        runner (Runner): Nothing happens unless its model is in DDP.
    """
    old = runner.model
    if not isinstance(old, DistributedDataParallel):
        return
    module = old.module
    hooks = {name: getattr(old, name) for name in _HOOKS}
    communication = list(getattr(old, '_comm_hooks', ()))
    paused = [
        p for p in _exchanged(old) - _withheld(module) if not p.requires_grad
    ]
    runner.model = old = None
    gc.collect()  # the old reducer must let go of the gradients first
    for parameter in paused:
        parameter.requires_grad_(True)
    runner.model = runner.wrap_model(
        runner.cfg.get('model_wrapper_cfg'), module)
    for parameter in paused:
        parameter.requires_grad_(False)
    for name, waiting in hooks.items():
        getattr(runner.model, name).update(waiting)
    for hook, state in communication:
        runner.model.register_comm_hook(state, hook)
    runner.model.train(module.training)
    runner._maybe_compile('train_step')  # as mmengine did with the old one


def take_in_released(runner) -> bool:
    """Wrap anew if parameters learn that DDP does not exchange.

    A backbone that was frozen when DDP was made, and released since, would
    drift apart on the ranks.

    Args:
        runner (Runner): Right before a training step.

    Returns:
        bool: Whether DDP was wrapped anew.
    """
    model = runner.model
    if not isinstance(model, DistributedDataParallel):
        return False
    ignored = getattr(model, 'parameters_to_ignore', ())
    learning = {
        p for name, p in model.module.named_parameters()
        if p.requires_grad and name not in ignored
    }
    if learning <= _exchanged(model):
        return False
    wrap_anew(runner)
    return True


def _exchanged(model: DistributedDataParallel) -> Set[nn.Parameter]:
    """Parameters in DDP's buckets."""
    known = getattr(model, '_module_parameters', None)
    if known is None:  # torch 2.0 does not keep them
        return {p for p in model.module.parameters() if p.requires_grad}
    return set(known)


def _withheld(module: nn.Module) -> Set[nn.Parameter]:
    """Parameters of skipped layers, whatever flags they have."""
    backbone = find_backbone(module)
    unused: Iterable[str] = (
        name for names in backbone.unused_state().values() for name in names)
    parameters = dict(backbone.named_parameters())
    return {parameters[name] for name in unused if name in parameters}
