"""Plugins: modules that a config puts into the residual blocks of a host.

The option is MMDetection's, for both hosts, with one key more (``blocks``) and
one position more (``conv2``):

    plugins=[dict(cfg=dict(type='SEAttention'), position='after_conv3'),
             dict(cfg=dict(type='NonLocal2d'), position='after_conv3',
                  stages=(False, False, True, False), blocks=(4, ))]
"""
import inspect
from typing import (
    Any,
    Dict,
    Iterable,
    List,
    NamedTuple,
    Optional,
    Sequence,
    Tuple,
)

from mmcv.cnn import build_conv_layer, build_plugin_layer
from mmcv.cnn.bricks.plugin import infer_abbr
from mmengine.registry import MODELS
from torch import Tensor, nn

from ...errors import UsageError

# In place of the block's second convolution, and after the three: after_conv1
# and after_conv2 follow norm and relu; the last, which is after_conv2 in a block
# of two convolutions, follows the norm, before the addition.
POSITIONS = ('conv2', 'after_conv1', 'after_conv2', 'after_conv3')

# What the compared papers put there; other registered modules will do as well.
SYSTEMS = ('SEAttention', 'ECAAttention', 'CBAMAttention', 'BAMAttention',
           'ContextBlock', 'NonLocal2d', 'DoubleAttention')
CONVOLUTIONS = ('AugmentedConv2d', )

_KEYS = ('cfg', 'position', 'stages', 'blocks')


def check_plugins(plugins: Sequence[dict], num_stages: int) -> None:
    """Raise a UsageError unless the option ``plugins`` is well formed.

    Args:
        plugins (Sequence[dict]): See :func:`apply_plugins`.
        num_stages (int): Stages of the backbone.

    Raises:
        UsageError: On unknown keys, positions or types, or ``stages`` that are
            not one per stage.
    """
    for plugin in plugins:
        unknown = set(plugin) - set(_KEYS)
        if unknown:
            raise UsageError(f'plugin key {sorted(unknown)[0]!r}: expected '
                             f'some of {_KEYS}')
        position = plugin.get('position')
        if position not in POSITIONS:
            raise UsageError(f'plugin position {position!r}: expected one of '
                             f'{POSITIONS}')
        stages = plugin.get('stages')
        if stages is not None and len(stages) != num_stages:
            raise UsageError(f'plugin stages={stages}: expected {num_stages} '
                             'booleans, one per stage')
        _check_type(plugin.get('cfg') or {}, position)


def _check_type(cfg: dict, position: str) -> None:
    kind = cfg.get('type')
    if inspect.isclass(kind):
        return
    with MODELS.switch_scope_and_registry(None) as registry:
        if isinstance(kind, str) and registry.get(kind) is not None:
            return
    known = CONVOLUTIONS if position == 'conv2' else SYSTEMS
    raise UsageError(f'plugin type {kind!r} is not registered: expected one of '
                     f'{known}, or a module of your own')


def apply_plugins(blocks: Sequence[nn.Module],
                  plugins: Sequence[dict],
                  stage_index: int,
                  last_norm_reader: Optional[str] = None) -> None:
    """Put plugins into the blocks of a stage, which the host has built.

    A plugin becomes a child of its block, named as mmcv's
    ``build_plugin_layer`` names it and listed in the block's ``plugin_names``;
    other names stay as they are, and so plain weights load. MMDetection's
    bottlenecks run their plugins themselves. In other blocks a plugin is run by
    a hook of the module that reads what the plugin changes, so that it survives
    a norm that is exchanged (fused into its convolution, or synchronised).
    ``conv2`` exchanges the convolution itself.

    Args:
        blocks (Sequence[nn.Module]): The stage's blocks; changed.
        plugins (Sequence[dict]): In the order in which they run where several
            have one position. Each has

            - cfg (dict): ``type`` and arguments of a module that takes
              ``in_channels``, or for ``conv2`` the arguments of ``nn.Conv2d``;
              and, where a block has two of one type, a ``postfix`` for the
              name.
            - position (str): ``'after_conv1'``, ``'after_conv2'``,
              ``'after_conv3'`` or ``'conv2'``. The last norm of a block of two
              convolutions is ``'after_conv2'``.
            - stages (Sequence[bool], optional): Whether each stage has it.
              Defaults to all.
            - blocks (Sequence[int], optional): Indices of the stage's blocks
              that have it, from 0. Defaults to all.
        stage_index (int): Of this stage, from 0.
        last_norm_reader (str, optional): Name of the child that reads the last
            norm's output in a block which does not run plugins itself. Defaults
            to None: there is none, and so no plugin after the last norm.

    Raises:
        UsageError: On blocks that the stage does not have, a position or
            convolution that its blocks do not have, a name given twice, or a
            module left without channels.
    """
    # Hooks of a convolution would be lost with it: exchange it first.
    for plugin in sorted(plugins, key=lambda p: p['position'] != 'conv2'):
        stages = plugin.get('stages')
        if stages is not None and not stages[stage_index]:
            continue
        for i in _chosen(plugin.get('blocks'), len(blocks), stage_index):
            cfg, position = dict(plugin['cfg']), plugin['position']
            if position == 'conv2':
                _exchange(blocks[i], cfg)
            else:
                _insert(blocks[i], cfg, position, last_norm_reader)


def init_plugins(blocks: Iterable[nn.Module]) -> None:
    """Let plugins start as they do by themselves.

    For the end of a backbone's ``init_weights``, unless that loads weights:
    the hosts fill every convolution, also the last of ContextBlock and
    NonLocal2d, which start at 0.

    Args:
        blocks (Iterable[nn.Module]): From :func:`apply_plugins`; changed.
    """
    for block in blocks:
        for name in getattr(block, 'plugin_names', ()):
            layer = getattr(block, name)
            for start in ('init_weights', 'reset_parameters'):
                if hasattr(layer, start):
                    getattr(layer, start)()


def plugin_norms(block: nn.Module) -> List[nn.Module]:
    """Find the batch norms that plugins have brought into a block.

    Args:
        block (nn.Module): With plugins or without.

    Returns:
        List[nn.Module]: Also of plugins that the host runs itself.
    """
    names = dict.fromkeys(getattr(block, 'plugin_names', ()))
    for position in POSITIONS[1:]:
        names.update(
            dict.fromkeys(getattr(block, f'{position}_plugin_names', ())))
    return [
        module for name in names for module in getattr(block, name).modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
    ]


def _chosen(chosen: Optional[Sequence[int]], total: int,
            stage_index: int) -> Sequence[int]:
    if chosen is None:
        return range(total)
    wrong = [i for i in chosen if i not in range(total)]
    if wrong:
        raise UsageError(
            f'plugin blocks={tuple(chosen)}: stage {stage_index + 1} has blocks '
            f'0 to {total - 1}; choose among them, and the stage by stages')
    return chosen


def _exchange(block: nn.Module, cfg: dict) -> None:
    conv = getattr(block, 'conv2', None)
    if not isinstance(conv, nn.Conv2d):
        raise UsageError(
            f"plugin position 'conv2': {type(block).__name__} has no plain "
            f'second convolution to exchange for {cfg["type"]}')
    block.conv2 = build_conv_layer(
        cfg,
        conv.in_channels,
        conv.out_channels,
        kernel_size=conv.kernel_size,
        stride=conv.stride,
        padding=conv.padding,
        dilation=conv.dilation,
        groups=conv.groups,
        bias=conv.bias is not None)


class _Place(NamedTuple):
    """Where a plugin stands: its channels, and the child that reads it."""
    channels: int
    reader: Optional[str]


def _places(block: nn.Module,
            last_norm_reader: Optional[str]) -> Dict[str, _Place]:
    places = dict(after_conv1=_Place(block.conv1.out_channels, 'conv2'))
    if hasattr(block, 'conv3'):
        places['after_conv2'] = _Place(block.conv3.in_channels, 'conv3')
        places['after_conv3'] = _Place(block.conv3.out_channels,
                                       last_norm_reader)
    else:
        places['after_conv2'] = _Place(block.conv2.out_channels,
                                       last_norm_reader)
    if _runs_plugins(block):
        return places
    return {
        position: place
        for position, place in places.items()
        if place.reader is not None and hasattr(block, place.reader)
    }


def _build(cfg: dict, in_channels: int) -> Tuple[str, nn.Module]:
    """Name and build a plugin; mmcv 2.0 takes no classes as types."""
    cfg = dict(cfg)
    postfix = cfg.pop('postfix', '')
    if isinstance(cfg['type'], str):
        return build_plugin_layer(cfg, postfix, in_channels=in_channels)
    kind = cfg.pop('type')
    return f'{infer_abbr(kind)}{postfix}', kind(in_channels=in_channels, **cfg)


def _runs_plugins(block: nn.Module) -> bool:
    """Whether a block has MMDetection's own way of running plugins."""
    return hasattr(block, 'forward_plugin')


def _insert(block: nn.Module, cfg: dict, position: str,
            last_norm_reader: Optional[str]) -> None:
    places = _places(block, last_norm_reader)
    if position not in places:
        raise UsageError(
            f'plugin position {position!r}: a {type(block).__name__} of '
            f'{type(block).__module__} has {tuple(places)}')
    place = places[position]
    name, layer = _build(cfg, place.channels)
    if not all(parameter.numel() for parameter in layer.parameters()):
        raise UsageError(
            f'plugin {cfg} leaves no channel of {place.channels} inside: '
            'squeeze less, or leave out the narrow stages by stages')
    if hasattr(block, name):
        raise UsageError(
            f'a block has two plugins {name!r}: give each cfg a postfix of its '
            "own (dict(type=..., postfix='1'))")
    block.add_module(name, layer)
    block.plugin_names = getattr(block, 'plugin_names', []) + [name]
    if _runs_plugins(block):
        _names(block)[position].append(name)
    else:
        getattr(block, place.reader).register_forward_pre_hook(
            _RunPlugin(block, name))


def _names(block: nn.Module) -> Dict[str, List[str]]:
    """Names of the plugins that a block of MMDetection runs, by position."""
    positions = POSITIONS[1:]
    if not block.with_plugins:
        block.with_plugins = True
        for position in positions:
            setattr(block, f'{position}_plugin_names', [])
    return {p: getattr(block, f'{p}_plugin_names') for p in positions}


class _RunPlugin:
    """A forward pre-hook: hands a module what the plugin makes of its input.

    It finds the plugin by name, in the block that owns it, so that copies of
    the block run their own and a plugin can be exchanged.
    """

    def __init__(self, block: nn.Module, name: str) -> None:
        self.block = block
        self.name = name

    def __call__(self, module: nn.Module, args: Any) -> Tensor:
        return getattr(self.block, self.name)(*args)
