"""Skips layers in a Runner's model, averaged models, optimizer and DDP."""
import gc
from typing import Iterator, List, MutableMapping, Optional, Set, Tuple
from weakref import WeakKeyDictionary

import torch.distributed as dist
from mmengine.model import MMSeparateDistributedDataParallel, is_model_wrapper
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..errors import UsageError
from ..models.backbones.layer_attention_mixin import (
    LayerAttentionMixin,
    find_backbone,
)

# Parameters in the buckets of each DDP wrapper; they never change.
_BUCKETS: MutableMapping[nn.Module, Set[nn.Parameter]] = WeakKeyDictionary()


def check_parallelism(runner) -> None:
    """Check that pruning supports the parallelism of a run.

    Args:
        runner (Runner | FlexibleRunner): Runner whose model is wrapped.

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
    """Skip layers in model, averaged models and optimizer, and rewrap DDP.

    Args:
        runner (Runner): Runner in training.
        names (List[str]): Names of attention layers.
        mode (str): How to skip them, ``'layer'`` or ``'retrieval'``.
    """
    backbone = find_backbone(runner.model)
    backbone.skip_layers(names, mode)
    for hook in runner.hooks:
        averaged = getattr(hook, 'ema_model', None)
        if averaged is not None:
            find_backbone(averaged).skip_layers(names, mode)
    _forget_momentum(runner)
    wrap_anew(runner)


def _forget_momentum(runner) -> None:
    """Delete the optimizer state of skipped layers, which is of no use.

    Parameters that something else has frozen for a while keep theirs.
    """
    unused = _unused(find_backbone(runner.model))
    for state in optimizer_states(runner.optim_wrapper):
        for parameter in unused.intersection(state):
            del state[parameter]


def optimizer_states(wrapper) -> Iterator[MutableMapping[nn.Parameter, dict]]:
    """Yield the state of every optimizer of a run, by parameter.

    Args:
        wrapper (OptimWrapper | OptimWrapperDict): Wrapper of a runner.

    Yields:
        MutableMapping[nn.Parameter, dict]: State of one optimizer.
    """
    wrappers = wrapper.values() if hasattr(wrapper, 'values') else [wrapper]
    for wrapper in wrappers:
        yield wrapper.optimizer.state
        # ZeroRedundancyOptimizer keeps its share in an inner optimizer.
        if hasattr(wrapper.optimizer, 'optim'):
            yield wrapper.optimizer.optim.state


def prepare(runner) -> None:
    """Skip layers that cannot learn, and apply a mask that was loaded.

    Args:
        runner (Runner): Runner before training, its weights loaded.
    """
    backbone = find_backbone(runner.model)
    noise = random_attention_of(backbone)
    if noise is not None:
        runner.logger.warning(noise)
    inert = backbone.inert_layers
    if inert:
        skip(runner, inert, 'layer')
        layers = find_backbone(runner.model).attention_layers
        active = [layer for layer in layers if layer.active]
        runner.logger.info(
            f'{len(inert)} attention layers lie in frozen stages with '
            'fresh weights: they add exactly 0 and cannot learn, so they '
            f'are skipped from the start ({", ".join(inert)}); '
            f'{len(active)} of {len(layers)} are active')
    elif not all(layer.active for layer in backbone.attention_layers):
        _forget_momentum(runner)  # the mask may have been edited by hand
        wrap_anew(runner)  # the model was wrapped before the mask was loaded


def random_attention_of(backbone: LayerAttentionMixin) -> Optional[str]:
    """Describe random attention in frozen stages, which stays random.

    Args:
        backbone (LayerAttentionMixin): Backbone with its weights.

    Returns:
        str | None: What it does and what to change; None if there is none.
    """
    random = [
        layer.name for layer in backbone.attention_layers
        if layer.active and layer.module.scale is None
        and backbone.fresh_attention and backbone.is_frozen(layer)
    ]
    if not random:
        return None
    return (
        f'{len(random)} attention layers lie in frozen stages with random '
        'first weights and no scale: they add noise to the features, and '
        'cannot learn. Set zero_init_attention=True, which leaves them '
        'out, load attention that was trained, or freeze less with '
        f'frozen_stages ({", ".join(random)})')


def wrap_anew(runner) -> None:
    """Wrap the model in DDP anew, without the parameters of skipped layers.

    Parameters that others have frozen for a while stay in DDP's buckets, so
    that they are exchanged again once they are unfrozen. Hooks on the old
    wrapper move to the new one. Without DDP nothing happens.

    Args:
        runner (Runner): Runner in training.
    """
    old = runner.model
    if not isinstance(old, DistributedDataParallel):
        return
    module = old.module
    _withhold(module)
    paused = [
        p for p in _exchanged(old) - _unused(find_backbone(module))
        if not p.requires_grad
    ]
    # Keep the same dictionaries: handles that users hold refer to them.
    hooks = {
        name: old.__dict__[name]
        for name in nn.Module().__dict__ if 'hook' in name
    }
    training, communication = old.training, _communication(old)
    runner.model = old = None
    gc.collect()  # the old reducer must release the gradients first
    for parameter in paused:
        parameter.requires_grad_(True)
    runner.model = runner.wrap_model(
        runner.cfg.get('model_wrapper_cfg'), module)
    for parameter in paused:
        parameter.requires_grad_(False)
    runner.model.__dict__.update(hooks, training=training)
    for register, *args in communication:
        getattr(runner.model, register)(*args)
    runner._maybe_compile('train_step')  # as mmengine did with the old one


def take_in_released(runner) -> None:
    """Rewrap the model if DDP does not exchange some parameters that learn.

    A backbone that was frozen when it was wrapped, and unfrozen later, would
    drift apart on the ranks.

    Args:
        runner (Runner): Runner right before a training step.
    """
    model = runner.model
    if not isinstance(model, DistributedDataParallel) or (
            _learning(model) <= _exchanged(model)):
        return
    _withhold(model.module)  # perhaps only skipped layers were unfrozen
    if not _learning(model) <= _exchanged(model):
        wrap_anew(runner)
        runner.logger.info('parameters were released that DDP did not '
                           'exchange: it is wrapped anew with them')


def _learning(model: DistributedDataParallel) -> Set[nn.Parameter]:
    ignored = getattr(model, 'parameters_to_ignore', ())
    return {
        p for name, p in model.module.named_parameters()
        if p.requires_grad and name not in ignored
    }


def _exchanged(model: DistributedDataParallel) -> Set[nn.Parameter]:
    """Return the parameters in DDP's buckets, which only its reducer knows."""
    if model not in _BUCKETS:
        _BUCKETS[model] = {
            parameter
            for bucket in model.reducer._get_zeros_like_grad_buckets()
            for parameter in bucket.parameters()
        }
    return _BUCKETS[model]


def _communication(model: DistributedDataParallel) -> List[Tuple]:
    """Return how to register a wrapper's communication hooks again.

    Returns:
        list: For each hook the name of a method of DDP and its arguments.
    """
    hooks = getattr(model, '_comm_hooks', ())
    if hooks:
        return [('register_comm_hook', state, hook) for hook, state in hooks]
    name = model._get_ddp_logging_data().get('comm_hook')
    builtin = getattr(dist, 'BuiltinCommHookType', None)
    for kind in getattr(builtin, '__members__', {}).values():
        if str(kind) == name:
            return [('_register_builtin_comm_hook', kind)]
    if name:
        raise UsageError(
            f'the communication hook {name} cannot move to the DDP wrapper '
            'that a pruning makes anew: this version of torch does not say '
            'which function it is. Train without it, or with torch >= 2.1')
    return []


def _withhold(module: nn.Module) -> None:
    """Freeze skipped layers again, which others may have unfrozen."""
    for stage in find_backbone(module).attention_stages:
        if stage.prunable:
            stage.withhold_gradients()


def _unused(backbone: LayerAttentionMixin) -> Set[nn.Parameter]:
    """Return the parameters of skipped layers, frozen or not."""
    parameters = dict(backbone.named_parameters())
    return {
        parameters[name]
        for names in backbone.unused_state().values() for name in names
        if name in parameters
    }
