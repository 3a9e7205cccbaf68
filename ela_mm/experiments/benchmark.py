"""What layer attention costs, measured next to the plain network in one process.

A machine's speed drifts, so no time is reported alone: the variants take
turns, and a variant's ratio is the median over rounds of its time divided by
the plain network's time in the same round.
"""
import ctypes
from contextlib import nullcontext
from typing import Callable, Dict, Iterable, List, NamedTuple, Optional, Tuple

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from ..errors import UsageError
from ..pruning import KLStatistics
from .families import FAMILIES, build_family
from .systems import SYSTEMS, backbone_options
from .variants import (
    ConcatenatingAttention,
    OwnValueAttention,
    SeparateLightAttention,
    replace_attention,
    watched_similarity,
)

# 'c' stands for ResNetV1c's stem of three convolutions. 'd8' has that stem too,
# and segmentation's dilations instead of strides in the last two stages.
NETWORKS = ('r18', 'r34', 'r50', 'r50c', 'r50-d8', 'r101', 'r101c', 'r101-d8',
            'r152', 'cifar20', 'cifar56', 'cifar110', *FAMILIES)
_D8 = dict(strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4))
# Numbers of blocks in the third stage of an ImageNet ResNet: R50 has 6, R101 23,
# R152 36.
GROWTH = (6, 12, 23, 36)
# Percentages of the attention layers that ELA skips.
SHARES = (25, 50, 80)
VARIANTS = ('plain', 'concatenating', 'base', 'fused', 'measuring',
            'own value', 'separate light', 'light',
            *(f'ELA {share}%' for share in SHARES))
# The compared systems that VARIANTS does not have under another name.
COMPARED = tuple(name for name in SYSTEMS
                 if name not in ('ResNet', 'MRLA-L', 'MRLA-B', 'ELA'))
# The plain network with a step in which CKA-SR compares 8 samples; it needs a
# batch of at least 4.
REGULARIZED = 'CKA-SR'


class Conditions(NamedTuple):
    """The conditions of a measurement.

    Attributes:
        network (str): One of ``NETWORKS``, or ``stage3 x T`` for an ImageNet
            ResNet with T blocks in its third stage.
        training (bool): Whether a step is forward and backward; False for
            inference. Defaults to True.
        device (str): ``'cpu'`` or ``'cuda'``. Defaults to ``'cpu'``.
        amp (bool): Whether forward runs in bfloat16 autocast. Defaults to
            False.
        batch (int): The number of images. Defaults to 2.
        size (int): The side of an image in pixels. Defaults to 224.
        channels_last (bool): Whether images and weights are in channels last.
            Defaults to False.
        compiled (bool): Whether torch.compile compiles the backbones. Defaults
            to False.
        with_cp (bool): Whether all but the plain network use activation
            checkpointing. Defaults to False.
        channels (int): The number of channels of an image. Defaults to 3.
    """
    network: str
    training: bool = True
    device: str = 'cpu'
    amp: bool = False
    batch: int = 2
    size: int = 224
    channels_last: bool = False
    compiled: bool = False
    with_cp: bool = False
    channels: int = 3


def build_backbone(network: str,
                   variant: str,
                   with_cp: bool = False,
                   mask: Optional[Dict[str, Tensor]] = None,
                   size: int = 224,
                   channels: int = 3) -> nn.Module:
    """Build one variant of a network.

    Args:
        network (str): The network, as in :class:`Conditions`.
        variant (str): One of ``VARIANTS`` or ``COMPARED``, ``'CKA-SR'``, or
            ``'ELA mask'``.
        with_cp (bool): Whether to use activation checkpointing; the plain
            network never does. Defaults to False.
        mask (Dict[str, Tensor], optional): The buffers ``active`` and
            ``visible`` for ``'ELA mask'``. Defaults to None.
        size (int): The side of an image in pixels, which AA is built for.
            Defaults to 224.
        channels (int): The number of channels of an image. Defaults to 3.

    Returns:
        nn.Module: A backbone.

    Raises:
        UsageError: On an unknown network, a variant that the network does not
            have, or a mask of another depth.
    """
    if network in FAMILIES:
        backbone = _family(network, variant, with_cp, channels)
    else:
        backbone = _resnet(network, variant, with_cp, size, channels)
    if variant == 'concatenating':
        replace_attention(backbone, ConcatenatingAttention)
    elif variant == 'own value':
        replace_attention(backbone, OwnValueAttention)
    elif variant == 'separate light':
        replace_attention(backbone, SeparateLightAttention)
    elif variant == REGULARIZED:
        backbone.regularizer = watched_similarity(backbone)
    elif variant == 'measuring':
        backbone.observe(KLStatistics().update)
    elif variant == 'ELA mask':
        backbone.load_state_dict({**backbone.state_dict(), **mask})
    elif variant.startswith('ELA'):
        backbone.skip_layers(
            evenly_spaced(backbone.attention_layers, int(variant[4:-1]) / 100))
    return backbone


def offers(network: str, variant: str) -> bool:
    """Tell whether a network has a variant: some exist for ResNets only."""
    return network not in FAMILIES or variant not in (
        *COMPARED, 'light', 'separate light', 'concatenating', 'own value',
        'fused')


def _family(network: str, variant: str, with_cp: bool,
            channels: int) -> nn.Module:
    attends = variant not in ('plain', REGULARIZED)
    if not offers(network, variant):
        raise UsageError(
            f'{variant!r} is a variant of ResNets, not of {network}: expected '
            f"--variants of 'base', 'measuring' and 'ELA 50%'")
    if channels != 3:
        raise UsageError(f'channels {channels}: {network} takes pictures of 3')
    return build_family(network, attends, with_cp and attends)


def _resnet(network: str, variant: str, with_cp: bool, size: int,
            channels: int) -> nn.Module:
    from ..hosts.mmpretrain import ELAResNet, ELAResNet_CIFAR
    if network.startswith('cifar'):
        cls, depth = ELAResNet_CIFAR, int(network[5:])
    elif network.startswith('stage3 x '):
        depth = int(network.split()[-1])
        bottleneck, _ = ELAResNet.arch_settings[50]
        cls = type(
            'DeepStage', (ELAResNet, ),
            dict(arch_settings={depth: (bottleneck, (3, 4, depth, 3))}))
    elif network in NETWORKS:
        cls, depth = ELAResNet, int(network[1:].partition('-')[0].rstrip('c'))
    else:
        raise UsageError(f'network {network!r}: expected one of {NETWORKS}')
    if variant in COMPARED:
        options = backbone_options(variant, cls, depth, lambda: (size, size))
    else:
        options = dict(
            attention={'plain': None, REGULARIZED: None, 'light': 'light',
                       'separate light': 'light'}.get(variant, 'base'),
            fused=variant == 'fused')
    if network in NETWORKS and network.startswith('r'):
        dilated = network.endswith('-d8')
        options['deep_stem'] = dilated or network.endswith('c')
        options.update(_D8 if dilated else {})
    return cls(depth, in_channels=channels,
               with_cp=with_cp and variant != 'plain', **options)


def evenly_spaced(layers: Iterable, share: float) -> List[str]:
    """Choose a share of the layers, spread evenly over the network.

    Args:
        layers (Iterable[AttentionLayerInfo]): All layers of a backbone.
        share (float): The share of all layers, from 0 to 1. A stage's first
            layer is never chosen, since ELA never skips it.

    Returns:
        List[str]: The names of the chosen layers.
    """
    layers = list(layers)
    candidates = [layer.name for layer in layers if layer.index > 0]
    number = min(round(share * len(layers)), len(candidates))
    return [
        candidates[(2 * i + 1) * len(candidates) // (2 * number)]
        for i in range(number)
    ]


def make_step(backbone: nn.Module,
              conditions: Conditions) -> Callable[[], None]:
    """Make a function that runs one step of a backbone on fixed noise.

    Args:
        backbone (nn.Module): The backbone, which is moved to the device and set
            to training or evaluation mode.
        conditions (Conditions): The conditions of the step.

    Returns:
        Callable: A function that runs forward, and backward in training,
        without waiting for a GPU.
    """
    forward = make_forward(backbone, conditions)

    def step() -> None:
        loss = forward()
        if conditions.training:
            loss.backward()
            backbone.zero_grad(set_to_none=True)

    return step


def seconds_on_gpu(step: Callable[[], None]) -> float:
    """Time a step by CUDA's events, from its first kernel to its last."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    step()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def make_forward(backbone: nn.Module,
                 conditions: Conditions) -> Callable[[], Tensor]:
    """Make a function that runs a backbone forward on fixed noise, to a loss.

    Args:
        backbone (nn.Module): The backbone, which is moved to the device and set
            to training or evaluation mode.
        conditions (Conditions): The conditions of the step.

    Returns:
        Callable: A function that returns the loss: the mean square of the last
        features, plus the backbone's regularizer in training.
    """
    c = conditions
    layout = (
        torch.channels_last if c.channels_last else torch.contiguous_format)
    backbone.to(c.device, memory_format=layout).train(c.training)
    images = torch.randn(
        c.batch, c.channels, c.size, c.size,
        generator=torch.Generator().manual_seed(0)).to(
            c.device, memory_format=layout)
    network = torch.compile(backbone) if c.compiled else backbone

    def forward() -> Tensor:
        with torch.set_grad_enabled(c.training), (torch.autocast(
                c.device, torch.bfloat16) if c.amp else nullcontext()):
            loss = network(images)[-1].float().square().mean()
        if c.training and hasattr(backbone, 'regularizer'):
            loss = loss + backbone.regularizer()
        return loss

    return forward


def keep_freed_memory() -> bool:
    """Make this process keep the memory it frees, as PyTorch does on CUDA.

    glibc returns large blocks to the system and takes them anew, page by page.
    Whether it does so depends on what happened before: by chance, that is up to
    8% of a step.

    Returns:
        bool: Whether the C library is glibc and keeps memory from now on.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, TypeError, AttributeError):  # another C library
        return False
    trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD, M_MMAP_MAX: malloc.h
    return bool(mallopt(trim_threshold, -1) and mallopt(mmap_max, 0))


def bytes_kept(backbone: nn.Module, conditions: Conditions) -> int:
    """Measure the memory that a forward pass keeps for backward.

    Args:
        backbone (nn.Module): The backbone.
        conditions (Conditions): The conditions of the step; ``compiled`` is
            ignored.

    Returns:
        int: The bytes of the storages that the pass made and that live on.
    """
    forward = make_forward(backbone, conditions._replace(compiled=False))
    with _Storages() as storages:
        loss = forward()
    kept = storages.bytes_alive()
    del loss
    return kept


class _Storages(TorchDispatchMode):
    """A dispatch mode that tracks the storages that operations make."""

    def __init__(self) -> None:
        super().__init__()
        self._made: Dict[int, Tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        inputs = {
            x.untyped_storage()._cdata
            for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)
        }
        for x in tree_flatten(result)[0]:
            if isinstance(x, Tensor):
                storage = x.untyped_storage()
                if storage._cdata not in inputs:
                    self._made[storage._cdata] = (StorageWeakRef(storage),
                                                  storage.nbytes())
        return result

    def bytes_alive(self) -> int:
        return sum(nbytes for ref, nbytes in self._made.values()
                   if not ref.expired())


def peak_bytes(backbone: nn.Module, conditions: Conditions) -> int:
    """Measure how far three steps raise the peak of memory.

    On a CPU this is the process's resident memory (Linux only). Call it in a
    process of its own, since an allocator keeps what earlier steps have freed.

    Args:
        backbone (nn.Module): The backbone, which is moved to the device.
        conditions (Conditions): The conditions of the step.

    Returns:
        int: Bytes; on CUDA those that PyTorch's allocator counts.
    """
    step = make_step(backbone, conditions)
    if conditions.device == 'cpu':
        before = _resident('VmRSS')
        for _ in range(3):
            step()
        return _resident('VmHWM') - before
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    for _ in range(3):
        step()
    return torch.cuda.max_memory_allocated() - before


def _resident(entry: str) -> int:
    """Return this process's resident bytes: ``VmRSS`` now, ``VmHWM`` at the peak.

    getrusage would start from the peak of the parent process.
    """
    with open('/proc/self/status', encoding='utf-8') as f:
        return next(
            int(line.split()[1]) * 1024 for line in f
            if line.startswith(entry))
