"""Replace backbones by ELA's in the hosts' configs, and try what comes out.

What builds with the plain backbone has to build with ELA, and what runs a
training step has to run one with ELA. ``python -m dev.drop_in.run`` counts
both over all configs that a host installs.
"""
import copy
import warnings
from contextlib import contextmanager, nullcontext
from importlib import import_module
from importlib.util import find_spec
from typing import (
    Any,
    Callable,
    ContextManager,
    Dict,
    Iterator,
    List,
    Optional,
    Tuple,
)

import numpy as np
import torch
import torch.distributed as dist
from mmengine.config import ConfigDict
from mmengine.logging import MessageHub
from mmengine.optim import OptimWrapper
from torch import Tensor, nn

from dev.drop_in.configs import (
    Entry,
    inside,
    load_model,
    reason,
    replace_backbones,
)
from dev.drop_in.downloads import small_bert, small_clip
from dev.drop_in.inputs import inputs_for
from ela_mm.models.backbones.layer_attention_mixin import LayerAttentionMixin


@contextmanager
def _uninitialized() -> Iterator[None]:
    """Leave out torch's random initialization, most of a build's time."""
    names = ('kaiming_uniform_', 'kaiming_normal_', 'xavier_uniform_',
             'xavier_normal_', 'uniform_', 'normal_', 'trunc_normal_')
    functions = {name: getattr(nn.init, name) for name in names}
    try:
        for name in names:
            setattr(nn.init, name, lambda tensor, *args, **kwargs: tensor)
        yield
    finally:
        for name, function in functions.items():
            setattr(nn.init, name, function)


@contextmanager
def _process_group() -> Iterator[None]:
    """A group of one process, which mmcv's SyncBN asks for when it is built."""
    dist.init_process_group('gloo', store=dist.HashStore(), rank=0,
                            world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def _small_downloads(model: dict) -> ContextManager:
    if "'BertModel'" in str(model) and find_spec('transformers'):
        return small_bert()
    if "'CLIPGenerator'" in str(model):
        return small_clip()
    return nullcontext()


def build(model: dict, host: str, weights: bool = True) -> nn.Module:
    """Build a model as the host does.

    Args:
        model (dict): Its config.
        host (str): One of ``HOSTS``.
        weights (bool): Whether it gets the random weights that training
            starts from; without, they are arbitrary. Defaults to True.

    Returns:
        nn.Module: The model.
    """
    initialization = nullcontext() if weights else _uninitialized()
    group = _process_group() if 'MMSyncBN' in str(model) else nullcontext()
    with inside(host), warnings.catch_warnings(), initialization, group, \
            _small_downloads(model):
        warnings.simplefilter('ignore')
        built = import_module(f'{host}.registry').MODELS.build(
            ConfigDict(copy.deepcopy(model)))
        if weights:
            _initialize(built)
    return built


def _initialize(built: nn.Module) -> None:
    """Give random weights, and a head to classifiers that have none."""
    built.init_weights()
    if getattr(built, 'head', built) is None and hasattr(built, 'with_head'):
        built.head = _Projection()


class _Projection(nn.Module):
    """A loss of features: their mean along a fixed random direction."""

    def loss(self, features: Any, data_samples: Any) -> Dict[str, Tensor]:
        return dict(loss=sum(
            (x * torch.randn(x.shape[1:])).mean() for x in _tensors(features)))


def _tensors(node: Any) -> Iterator[Tensor]:
    if isinstance(node, Tensor):
        yield node
    else:
        for item in node:
            yield from _tensors(item)


def _adapted(model: dict) -> dict:
    """Adapt what asks for pictures of real size, or refuses to train.

    Batches are not padded or resized to the size of real training, encoders
    keep their activations, and heads that the host trains without distillation
    alone are made so.
    """
    preprocessor = model.get('data_preprocessor') or {}
    for node in (preprocessor, preprocessor.get('data_preprocessor') or {}):
        if node.get('batch_augments'):
            node['batch_augments'] = None
        if node.get('size') or (  # mmseg's: of the crops
                node.get('type') == 'SegDataPreProcessor'
                and not node.get('size_divisor')):
            node.update(size=None, size_divisor=1)
    if model['type'] == 'MILAN':  # whose config leaves out a decoder's width
        model['neck'].setdefault('embed_dim', 768)
    if (model.get('encoder') or {}).get('num_cp'):  # which takes fairscale
        model['encoder']['num_cp'] = 0
    head = model.get('head') or {}
    if head.get('type') in ('LeViTClsHead', 'EfficientFormerClsHead'):
        head['distillation'] = False
    return model


def train_step(model: nn.Module, data: Any) -> Dict[str, float]:
    """One training step, checked.

    Args:
        model (nn.Module): A whole detector, classifier or segmentor; it is changed.
        data (Any): What its data loader would return.

    Returns:
        Dict[str, float]: The losses.

    Raises:
        Exception: Whatever the model raises; ArithmeticError on a loss that is
            not finite, or if a trainable attention layer got no gradient.
    """
    torch.manual_seed(0)
    for name in ('epoch', 'iter'):  # which Runner keeps there
        MessageHub.get_current_instance().update_info(name, 0)
    model.train()
    trainable = [p for p in model.parameters() if p.requires_grad]
    used, moved = {}, {}  # by layer: whether any gradient is not 0
    handles = []

    def note(seen: Dict[str, bool], name: str) -> Callable[[Tensor], None]:

        def hook(grad: Tensor) -> None:
            seen[name] = seen.get(name, False) or bool(grad.any())

        return hook

    for name, value, block in _attention(model):
        handles.append(value.register_hook(note(moved, name)))
        handles += [p.register_hook(note(used, name))
                    for p in block.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trainable, lr=1e-3)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            losses = model.train_step(
                copy.deepcopy(data), OptimWrapper(optimizer))
    finally:
        for handle in handles:
            handle.remove()
    losses = {name: float(torch.as_tensor(value).detach().mean())
              for name, value in losses.items()}
    if not np.isfinite(losses['loss']):
        raise ArithmeticError(f'the loss is {losses["loss"]}')
    # A value may get exactly 0, where attention has saturated on another layer.
    still = sorted(set(used) - set(moved))
    # A head that starts at 0 lets no gradient through.
    if still or (any(used.values()) and moved and not any(moved.values())):
        raise ArithmeticError('attention got no gradient: '
                              f'{", ".join(still[:3]) or "all are 0"}')
    return losses


def _attention(model: nn.Module
               ) -> Iterator[Tuple[str, nn.Parameter, nn.Module]]:
    """Name, trainable value and block of attention layers.

    A loss that reaches a block has to reach its attention.
    """
    for prefix, backbone in model.named_modules():
        if not isinstance(backbone, LayerAttentionMixin):
            continue
        for layer in backbone.attention_layers:
            if layer.module.value.weight.requires_grad:
                stage = backbone.attention_stages[layer.stage - 1]
                yield (f'{prefix}.{layer.name}', layer.module.value.weight,
                       stage.block(layer.index))


def try_model(entry: Entry, steps: bool = True) -> Dict[str, Any]:
    """Build a model plain and with ELA, and train one step with each.

    Args:
        entry (Entry): From :func:`~dev.drop_in.configs.catalogue`.
        steps (bool): Whether to train. Defaults to True.

    Returns:
        Dict[str, Any]: ``plain_build``, ``ela_build``, ``plain_step`` and
        ``ela_step``, each ``'ok'``, the reason why not, or missing if it was
        not tried, as all but the first where ELA has no variant; ``inputs``,
        what the steps were made with.
    """
    result: Dict[str, Any] = {}
    plain = _adapted(load_model(entry.host, entry.configs[0]))
    chosen: Optional[Tuple[str, Any]] = None
    replaced: List[str] = []
    ours = replace_backbones(plain, plain.get('_scope_', entry.host), replaced)
    steps = steps and bool(replaced)
    kinds = [('plain', plain)] + [('ela', ours)] * bool(replaced)
    for kind, cfg in kinds:
        torch.manual_seed(0)
        try:
            model = build(cfg, entry.host, weights=steps)
        except Exception as error:
            result[f'{kind}_build'] = reason(error)
            if kind == 'plain':
                return result
            continue
        result[f'{kind}_build'] = 'ok'
        if not steps or (kind == 'ela' and chosen is None):
            continue
        with inside(entry.host):
            choices = ([chosen] if chosen else
                       inputs_for(model, entry.host))
            reasons: List[str] = []
            for note, data in choices:
                try:
                    train_step(model, data)
                except Exception as error:
                    if reason(error) not in reasons:
                        reasons.append(reason(error))
                    result[f'{kind}_step'] = ' | '.join(reasons)
                    if isinstance(error, NotImplementedError):
                        break
                    continue
                result[f'{kind}_step'] = 'ok'
                result['inputs'] = note
                chosen = note, data
                break
        del model
    return result
