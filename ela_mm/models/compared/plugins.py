"""Plugins: modules that a config puts into the residual blocks of a host.

The option is that of MMDetection, offered for all hosts, with an additional key
(``blocks``) and an additional position (``conv2``):

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

# conv2 replaces the second convolution of a block. after_conv1 and after_conv2
# are behind norm and relu; but behind the last convolution (the second one in a
# basic block) the position is between norm and addition.
POSITIONS = ('conv2', 'after_conv1', 'after_conv2', 'after_conv3')

# Modules that the compared papers use; any registered module may be given.
SYSTEMS = ('SEAttention', 'ECAAttention', 'CBAMAttention', 'BAMAttention',
           'ContextBlock', 'NonLocal2d', 'DoubleAttention')
CONVOLUTIONS = ('AugmentedConv2d', )
# Of mmcv's modules that have none: the paper's reduction.
DEFAULTS = dict(ContextBlock=dict(ratio=1 / 16))

_KEYS = ('cfg', 'position', 'stages', 'blocks')


def check_plugins(plugins: Sequence[dict], num_stages: int) -> None:
    """Raise a UsageError unless the option ``plugins`` is well formed.

    Args:
        plugins (Sequence[dict]): Plugins, see :func:`apply_plugins`.
        num_stages (int): Number of stages of the backbone.

    Raises:
        UsageError: On unknown keys, positions or types, or if ``stages`` has
            not one entry for each stage.
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


def with_defaults(plugins: Sequence[dict]) -> List[dict]:
    """Complete plugins whose modules need an argument that the paper fixes.

    Args:
        plugins (Sequence[dict]): Plugins that :func:`check_plugins` accepts.

    Returns:
        List[dict]: Plugins with ``DEFAULTS`` for arguments that they leave out.
    """
    return [
        dict(plugin, cfg=dict(DEFAULTS.get(plugin['cfg']['type'], {}),
                              **plugin['cfg'])) for plugin in plugins
    ]


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

    A plugin becomes a child of its block, with the name that mmcv's
    ``build_plugin_layer`` gives it, and is listed in the block's
    ``plugin_names``. Other names do not change, so plain weights load.
    Bottlenecks of MMDetection run their plugins themselves. In other blocks,
    the plugin is run by a hook on the module that reads the plugin's output, so
    that the norm before it may be replaced (fused into its convolution, or
    synchronised). ``conv2`` replaces the convolution itself.

    Args:
        blocks (Sequence[nn.Module]): Blocks of the stage, changed in place.
        plugins (Sequence[dict]): Plugins; several with the same position run in
            this order. Each has

            - cfg (dict): ``type`` and arguments of a module that takes
              ``in_channels``, or for ``conv2`` the arguments of ``nn.Conv2d``.
              If a block has two of one type, ``postfix`` makes the names
              differ.
            - position (str): ``'after_conv1'``, ``'after_conv2'``,
              ``'after_conv3'`` or ``'conv2'``. ``'after_conv2'`` is behind the
              last norm in a basic block.
            - stages (Sequence[bool], optional): Whether each stage has it.
              Defaults to all.
            - blocks (Sequence[int], optional): Indices of the blocks that have
              it in a stage, from 0. Defaults to all.
        stage_index (int): Index of this stage, from 0.
        last_norm_reader (str, optional): Name of the child that reads the
            output of the last norm, in blocks that do not run plugins
            themselves. Defaults to None: there is none, and no plugin can
            follow the last norm.

    Raises:
        UsageError: On blocks that the stage does not have, a position or
            convolution that its blocks do not have, a name given twice, or a
            module left without channels.
    """
    # conv2 first: hooks of a convolution would be lost with it.
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
    """Initialise plugins as they do by default.

    To be called at the end of a backbone's ``init_weights``, unless that loads
    weights. The hosts initialise every convolution, also the last ones of
    ContextBlock and NonLocal2d, which have to start at 0.

    Args:
        blocks (Iterable[nn.Module]): Blocks with plugins, changed in place.
    """
    for block in blocks:
        for name in getattr(block, 'plugin_names', ()):
            layer = getattr(block, name)
            for start in ('init_weights', 'reset_parameters'):
                if hasattr(layer, start):
                    getattr(layer, start)()


def plugin_norms(block: nn.Module) -> List[nn.Module]:
    """Find the batch norms that plugins have added to a block.

    Args:
        block (nn.Module): Block, with plugins or without.

    Returns:
        List[nn.Module]: Batch norms, also of plugins that the host runs itself.
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
            f"0 to {total - 1}; choose among them (the key 'stages' chooses "
            'stages)')
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
    """A position of plugins: its channels, and the child that reads it."""
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
    """Build a plugin and its name; mmcv 2.0 takes no class as a type."""
    cfg = dict(cfg)
    postfix = cfg.pop('postfix', '')
    if isinstance(cfg['type'], str):
        return build_plugin_layer(cfg, postfix, in_channels=in_channels)
    kind = cfg.pop('type')
    return f'{infer_abbr(kind)}{postfix}', kind(in_channels=in_channels, **cfg)


def _runs_plugins(block: nn.Module) -> bool:
    """Return whether a block runs plugins itself, as in MMDetection."""
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
    """Return the names of plugins that MMDetection runs, by position."""
    positions = POSITIONS[1:]
    if not block.with_plugins:
        block.with_plugins = True
        for position in positions:
            setattr(block, f'{position}_plugin_names', [])
    return {p: getattr(block, f'{p}_plugin_names') for p in positions}


class _RunPlugin:
    """A forward pre-hook that runs a plugin on the input of a module.

    It finds the plugin by name in its block, so that copies of the block run
    their own plugin, and a plugin can be replaced.
    """

    def __init__(self, block: nn.Module, name: str) -> None:
        self.block = block
        self.name = name

    def __call__(self, module: nn.Module, args: Any) -> Tensor:
        return getattr(self.block, self.name)(*args)
