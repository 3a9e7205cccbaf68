"""Measures what stages and attention layers cost, before and after pruning.

Stages are timed one at a time, since the time of a layer would be lost in the
noise of a whole network: once blocks and attention together, and once attention
alone with and without each of its layers. The cost of attention in a stage with
k active layers is modelled as a fixed cost for each layer, plus an equal cost
for each of the k (k + 1) / 2 values that they retrieve.
"""
import statistics
from copy import deepcopy
from typing import (
    Any,
    Callable,
    Dict,
    Iterable,
    List,
    NamedTuple,
    Optional,
    Sequence,
    Tuple,
)

import torch
from mmengine.config import Config
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from ..apis.data import picture_shape
from ..models.backbones.layer_attention_mixin import find_backbone
from ..models.backbones.pictures import picture_channels
from ..models.backbones.stages import AttentionStage
from ..timing import ratio, time_in_turns
from .complexity import count_by_module

Mask = Tuple[List[bool], List[bool]]


class LayerCost(NamedTuple):
    """The cost of one attention layer.

    Attributes:
        name (str): Name of the layer, ``layer<stage>.<index>``.
        active (bool): Whether the layer is active now.
        parameters (int): Number of its parameters.
        macs (int): Multiply-accumulates for one image when all layers are
            active, its weighted sum included.
        seconds (float): Difference of a step with all layers and a step
            without this one; 0 if that is below the noise.
        stage (str): Name of its stage.
    """
    name: str
    active: bool
    parameters: int
    macs: int
    seconds: float
    stage: str = ''


class StageCost(NamedTuple):
    """The cost of a stage, before pruning (all layers active) and after it.

    Attributes:
        name (str): Name of the stage, ``layer<stage>``.
        parameters (int): Number of parameters of the blocks.
        attention_parameters (int): Number of parameters of all attention
            layers.
        macs (int): Multiply-accumulates of the blocks for one image.
        macs_before (int): Multiply-accumulates of attention before pruning.
        macs_after (int): Multiply-accumulates of attention after pruning.
        seconds (float): Seconds of a step of the blocks without attention.
        seconds_before (float): Seconds of a step before pruning.
        seconds_after (float): Seconds of a step after pruning.
        pair_seconds (float): Seconds that each retrieved value adds to a step.
    """
    name: str
    parameters: int
    attention_parameters: int
    macs: int
    macs_before: int
    macs_after: int
    seconds: float
    seconds_before: float
    seconds_after: float
    pair_seconds: float


class Cost(NamedTuple):
    """The cost of a backbone, and the conditions that it was measured under.

    Attributes:
        conditions (str): Description of device, threads, batch, image and
            step.
        parameters (int): Number of parameters of the whole model.
        unused_parameters (int): Number of those that skipped layers do not
            use.
        macs_before (int): Multiply-accumulates of the backbone for one image,
            with all layers active.
        macs_after (int): Multiply-accumulates as pruned.
        stages (List[StageCost]): Stages, in order.
        layers (List[LayerCost]): Attention layers, in order.
    """
    conditions: str
    parameters: int
    unused_parameters: int
    macs_before: int
    macs_after: int
    stages: List[StageCost]
    layers: List[LayerCost]

    @property
    def seconds_before(self) -> float:
        """Seconds of a step of all stages with all layers active."""
        return sum(stage.seconds_before for stage in self.stages)

    @property
    def seconds_after(self) -> float:
        """Seconds of a step of all stages as pruned."""
        return sum(stage.seconds_after for stage in self.stages)

    def attention_seconds(self, active: Iterable[str]) -> float:
        """Predict how many seconds attention adds to a step.

        Args:
            active (Iterable[str]): Names of the active layers; all others are
                skipped by ``skip='layer'``.

        Returns:
            float: Seconds.
        """
        active, total = set(active), 0.
        for stage in self.stages:
            layers = [
                layer for layer in self.layers
                if layer.stage == stage.name
            ]
            left = [layer for layer in layers if layer.name in active]
            # One of T layers takes part in T of the pairs.
            fixed = [x.seconds - len(layers) * stage.pair_seconds for x in left]
            total += sum(fixed) + stage.pair_seconds * _pairs(len(left))
        return total


def _pairs(layers: int) -> int:
    """Return how many values k layers retrieve, their own included."""
    return layers * (layers + 1) // 2


def cost_of_config(cfg: Config,
                   model: nn.Module,
                   shape: Optional[Sequence[int]] = None,
                   batch: Optional[int] = None,
                   **options) -> 'Cost':
    """Measure the cost under the conditions of a config's training.

    Args:
        cfg (Config): Config of the model.
        model (nn.Module): Model with one ELA backbone; not changed.
        shape (Sequence[int], optional): (H, W) of the images. Defaults to
            :func:`~ela_mm.apis.data.picture_shape` of the config.
        batch (int, optional): Number of images in a step. Defaults to that of
            ``train_dataloader``, or else 2.
        **options: Further arguments of :func:`measure_cost`.

    Returns:
        Cost: The cost; times are in seconds on the model's device.
    """
    loader = cfg.get('train_dataloader') or {}
    return measure_cost(model, shape or picture_shape(cfg),
                        batch or loader.get('batch_size') or 2, **options)


def measure_cost(model: nn.Module,
                 shape: Sequence[int],
                 batch: int = 2,
                 rounds: int = 10,
                 training: bool = True,
                 progress: Callable = iter) -> Cost:
    """Count and time a model's backbone, stage by stage and layer by layer.

    Args:
        model (nn.Module): Model with one ELA backbone; not changed.
        shape (Sequence[int]): (H, W) of the images.
        batch (int): Number of images in a timed step. Defaults to 2.
        rounds (int): Number of timed rounds, whose median is taken. Defaults to
            10.
        training (bool): Whether a step is forward and backward, with stages
            frozen as in training; if False, it is forward in eval mode.
            Defaults to True.
        progress (Callable): Function that wraps the list of stages, to show a
            bar. Defaults to ``iter``.

    Returns:
        Cost: The cost; times are in seconds on the model's device.

    Raises:
        UsageError: If the model has no layer attention to prune.
    """
    original = find_backbone(model)
    device = next(model.parameters()).device
    backbone = deepcopy(original)
    masks = {
        stage.name: (list(stage.active), list(stage.visible))
        for stage in backbone.attention_stages
    }
    picture = picture_channels(backbone), *shape
    macs_after = count_by_module(backbone, picture)
    backbone.restore_layers()
    macs_before = count_by_module(backbone, picture)
    backbone.train(training)
    inputs = _stage_inputs(backbone,
                           torch.randn(batch, *picture, device=device))
    stages, layers = [], []
    for stage in progress(backbone.attention_stages):
        mask = masks[stage.name]
        given, learns = inputs[stage.name]
        seconds = _time_stage(stage, given, learns, training, mask, rounds)
        per_layer, per_pair = _time_layers(stage, given, learns, training,
                                           rounds)
        attention = [
            sum(p.numel() for p in layer.parameters())
            for layer in stage.attention
        ]
        before, after = (_attention_macs(macs, stage)
                         for macs in (macs_before, macs_after))
        stages.append(
            StageCost(stage.name,
                      _block_parameters(backbone, stage), sum(attention),
                      macs_before[stage.name] - before, before, after,
                      *seconds, per_pair))
        layers += [
            LayerCost(f'{stage.name}.{i}', mask[0][i], attention[i],
                      macs_before.get(f'{stage.name}.attention.{i}', 0),
                      per_layer[i], stage.name)
            for i in range(len(stage))
        ]
    unused = original.state_dict()
    names = {n for names in original.unused_state().values() for n in names}
    return Cost(
        conditions=_conditions(device, batch, shape, training, rounds),
        parameters=sum(p.numel() for p in model.parameters()),
        unused_parameters=sum(
            unused[name].numel() for name in names
            if name in dict(original.named_parameters())),
        macs_before=macs_before[''],
        macs_after=macs_after[''],
        stages=stages,
        layers=layers)


def _conditions(device: torch.device, batch: int, shape: Sequence[int],
                training: bool, rounds: int) -> str:
    where = (
        torch.cuda.get_device_name(device) if device.type == 'cuda' else
        f'CPU, {torch.get_num_threads()} thread'
        f'{"s" * (torch.get_num_threads() > 1)}')
    what = 'forward and backward' if training else 'forward, eval mode'
    return (f'backbone alone, stage by stage, {what}, {batch} pictures of '
            f'{shape[0]} x {shape[1]}, float32, {where}, medians of {rounds} '
            'rounds')


def _everything(stage: AttentionStage) -> Mask:
    return [True] * len(stage), [True] * len(stage)


def _set_mask(stage: AttentionStage, mask: Mask) -> None:
    stage.active, stage.visible = (list(part) for part in mask)


def _attention_macs(macs: Dict[str, int], stage: AttentionStage) -> int:
    """Return the number for all of a stage but its blocks."""
    return macs[stage.name] - sum(
        macs.get(name, 0) for name in _block_names(stage))


def _block_parameters(backbone: nn.Module, stage: AttentionStage) -> int:
    return sum(p.numel() for name in _block_names(stage)
               for p in backbone.get_submodule(name).parameters())


def _block_names(stage: AttentionStage) -> List[str]:
    return [name for i in range(len(stage)) for name in stage.block_parts(i)]


@torch.no_grad()
def _stage_inputs(backbone: nn.Module, images: Tensor) -> dict:
    """Record the input of each stage, and whether anything before it learns."""
    inputs = {}

    def note(module: nn.Module, args: Tuple[Any, ...]) -> None:
        inputs.setdefault(module.name, tuple(  # copy lists: hosts append to
            list(x) if isinstance(x, list) else x for x in args))

    handles = [
        stage.register_forward_pre_hook(note)
        for stage in backbone.attention_stages
    ]
    was_training = backbone.training
    backbone.eval()
    backbone(images)
    backbone.train(was_training)
    for handle in handles:
        handle.remove()
    learning = [name for name, parameter in backbone.named_parameters()
                if parameter.requires_grad]
    names = [name for name, _ in backbone.named_parameters()]
    for name, given in inputs.items():
        first = next(i for i, own in enumerate(names)
                     if own.startswith(f'{name}.'))
        inputs[name] = given, any(own in learning for own in names[:first])
    return inputs


def _step(stage: nn.Module, given: Tuple[Any, ...], learns: bool,
          training: bool,
          mask: Optional[Mask] = None) -> Callable[[], None]:
    leaves, form = tree_flatten(given[0])  # a tensor, or a list in DenseNet
    leaves = [x.detach().requires_grad_(learns and training) for x in leaves]
    x, beside = tree_unflatten(leaves, form), given[1:]
    layers = list(stage.attention)

    def step() -> None:
        if mask is not None:
            _set_mask(stage, mask)
        with torch.set_grad_enabled(training):
            output = stage(x, *beside)
            if not isinstance(output, Tensor):
                output = output[-1]  # the last of a list of steps
            if isinstance(output, tuple):
                output = output[0]  # the features, which come first
            if output.requires_grad:
                output.sum().backward()
        for leaf in leaves:
            leaf.grad = None
        for part in (stage, *stage[:], *layers):
            part.zero_grad(set_to_none=True)
        if leaves[0].is_cuda:
            torch.cuda.synchronize()

    return step


def _time_stage(stage: AttentionStage, given: Tuple[Any, ...], learns: bool,
                training: bool, mask: Mask, rounds: int) -> Tuple[float, float, float]:
    """Time the blocks alone, with all layers, and as pruned; seconds."""
    nothing = ([False] * len(stage), ) * 2
    steps = {
        name: _step(stage, given, learns, training, wanted)
        for name, wanted in (('blocks', nothing),
                             ('before', _everything(stage)), ('after', mask))
    }
    times = time_in_turns(steps, rounds)
    _set_mask(stage, _everything(stage))
    # By ratios within rounds, since a machine's speed drifts between them.
    blocks = statistics.median(times['blocks'])
    return (blocks, blocks * ratio(times['before'], times['blocks']),
            blocks * ratio(times['after'], times['blocks']))


def _time_layers(stage: AttentionStage, given: Tuple[Any, ...], learns: bool,
                 training: bool,
                 rounds: int) -> Tuple[List[float], float]:
    """Time how much each layer, and each retrieved value, adds to attention."""
    with torch.no_grad():
        alone, x = stage.alone(stage(*given), *given[1:])
    learns = learns or any(
        p.requires_grad for part in (stage, *stage[:])
        for p in part.parameters())
    total = len(stage)
    everything, nothing = [True] * total, [False] * total
    steps = {
        name: _step(alone, (x, ), learns, training, (mask, mask))
        for name, mask in (('all', everything), ('none', nothing))
    }
    for i in range(total):
        without = everything[:i] + [False] + everything[i + 1:]
        steps[i] = _step(alone, (x, ), learns, training, (without, without))
    times = time_in_turns(steps, rounds)

    def more_than(name) -> float:
        return max(
            0.,
            statistics.median(
                a - b for a, b in zip(times['all'], times[name])))

    layers = [more_than(i) for i in range(total)]
    # A pair of two layers counts in both layers, but once in the whole.
    twice = sum(layers) - more_than('none')
    pair = max(0., twice) / max(1, _pairs(total) - total)
    return layers, min(pair, min(layers) / total)
