"""All systems that the paper compares, as options of one backbone.

Each row of a table is a plain ResNet's config with a few keys replaced. See
:mod:`ela_mm.models.compared.plugins` for plugins, and
:mod:`ela_mm.models.backbones.stages.kinds` and :mod:`ela_mm.models.compared`
for kinds of attention.
"""
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Tuple

from mmengine.config import Config
from mmengine.registry import MODELS

from ..apis.data import picture_shape
from ..config_types import class_of, enter_scope, type_name
from ..errors import UsageError
from ..models.backbones.stages import ATTENTION
from ..models.compared.rla import CHANNELS


class Shape(NamedTuple):
    """Properties of a ResNet that decide where plugins are placed.

    Attributes:
        depth (int): Depth of the network.
        blocks (Tuple[int, ...]): Number of blocks in each stage.
        last (str): Plugin position after a block's last norm.
        reduction (int): Factor by which the stem reduces height and width.
        picture (Callable): Function that returns height and width of the
            images.
    """
    depth: int
    blocks: Tuple[int, ...]
    last: str
    reduction: int
    picture: Callable[[], Tuple[int, int]]

    def stages(self, *chosen: int) -> Tuple[bool, ...]:
        """Return whether each stage is among the chosen indices, from 0."""
        return tuple(i in chosen for i in range(len(self.blocks)))

    def map_size(self, stage: int) -> Tuple[int, ...]:
        """Return height and width of a stage's maps, by its index from 0."""
        return tuple(-(-side // (self.reduction * 2**stage))
                     for side in self.picture())


class System(NamedTuple):
    """One system.

    Attributes:
        attention (str, optional): Kind of attention of the backbone. Defaults
            to None.
        plugins (Callable, optional): Function that makes the plugins for a
            :class:`Shape`. Defaults to None.
        pruned (bool): Whether ELAPruneHook runs. Defaults to False.
        classifier (Tuple[str, int], optional): Kind of attention in
            classifiers, if it differs, and the number of channels that it adds
            to the input of the head. Defaults to None.
    """
    attention: Optional[str] = None
    plugins: Optional[Callable[[Shape], List[dict]]] = None
    pruned: bool = False
    classifier: Optional[Tuple[str, int]] = None


def _everywhere(kind: str) -> Callable[[Shape], List[dict]]:
    """Place a module after the last norm of every block."""
    return lambda shape: [dict(cfg=dict(type=kind), position=shape.last)]


def _global_context(shape: Shape) -> List[dict]:
    """Place GC in all stages but the first, c3 to c5.

    The reduction is 16, and 4 at depth 101, as in the runs of its authors that
    tables 2 and 5 print.
    """
    ratio = 1 / 4 if shape.depth == 101 else 1 / 16
    return [dict(cfg=dict(type='ContextBlock', ratio=ratio),
                 position=shape.last,
                 stages=shape.stages(*range(1, len(shape.blocks))))]


def _non_local(shape: Shape) -> List[dict]:
    """Place one NL before the last block of the last stage but one, c4."""
    stage = len(shape.blocks) - 2
    return [dict(cfg=dict(type='NonLocal2d', reduction=2),
                 position=shape.last,
                 stages=shape.stages(stage),
                 blocks=(shape.blocks[stage] - 2, ))]


def _double_attention(shape: Shape) -> List[dict]:
    """Place A2 in all stages but the first and the last, c3 and c4."""
    return [dict(cfg=dict(type='DoubleAttention'),
                 position=shape.last,
                 stages=shape.stages(*range(1, len(shape.blocks) - 1)))]


def _augmented(shape: Shape) -> List[dict]:
    """Replace the 3x3 convolutions of all stages but the first by AA."""
    return [dict(cfg=dict(type='AugmentedConv2d', map_size=shape.map_size(i)),
                 position='conv2', stages=shape.stages(i))
            for i in range(1, len(shape.blocks))]


#: Systems by their names in the paper's tables, which do not have DLA.
SYSTEMS: Dict[str, System] = {
    'ResNet': System(),
    'SE': System(plugins=_everywhere('SEAttention')),
    'ECA': System(plugins=_everywhere('ECAAttention')),
    'CBAM': System(plugins=_everywhere('CBAMAttention')),
    'BAM': System(plugins=_everywhere('BAMAttention')),
    'GC': System(plugins=_global_context),
    'NL': System(plugins=_non_local),
    'A2': System(plugins=_double_attention),
    'AA': System(plugins=_augmented),
    'DIA': System('dia'),
    'RLA': System('rla', classifier=('rla-concat', CHANNELS)),
    'DLA-L': System('dla-light'),
    'DLA-B': System('dla-base'),
    'MRLA-L': System('light'),
    'MRLA-B': System('base'),
    'ELA': System('base', pruned=True),
}


def backbone_options(
        name: str, backbone: type, depth: int,
        picture: Callable[[], Tuple[int, int]]) -> Dict[str, Any]:
    """Return the options that turn a backbone into that of a system.

    Args:
        name (str): Name of the system in :data:`SYSTEMS`.
        backbone (type): Class of the backbone, one of the ``ELA*`` ResNets.
        depth (int): Depth of the backbone.
        picture (Callable): Function that returns height and width of the
            images, which AA needs.

    Returns:
        Dict[str, Any]: The options ``attention`` and ``plugins``.

    Raises:
        UsageError: On an unknown name.
    """
    system = _system(name)
    block, blocks = backbone.arch_settings[depth]
    shape = Shape(
        depth, tuple(blocks),
        'after_conv3' if 'Bottleneck' in block.__name__ else 'after_conv2',
        1 if 'CIFAR' in backbone.__name__ else 4, picture)
    plugins = None if system.plugins is None else system.plugins(shape)
    return dict(attention=system.attention, plugins=plugins)


def overrides(name: str, cfg: Config) -> Dict[str, Any]:
    """Return the values that turn a config into that of a system.

    Args:
        name (str): Name of the system in :data:`SYSTEMS`.
        cfg (Config): Config of a detector or classifier with an ``ELA*``
            ResNet; depth and image size have to be final.

    Returns:
        Dict[str, Any]: Values by dotted keys. Attention starts at zero if the
        config says so and the system can.

    Raises:
        UsageError: On an unknown name, or another backbone.
    """
    system = _system(name)
    backbone = cfg.model.backbone
    enter_scope(cfg)
    cls = class_of(backbone, MODELS)
    if not hasattr(cls, 'attention_stages'):
        raise UsageError(f'system {name!r} needs a backbone such as '
                         f"'ELAResNet', the config has {type_name(backbone)!r}")
    options = backbone_options(name, cls, backbone.depth,
                               lambda: picture_shape(cfg))
    changes = {}
    if system.classifier is not None and 'head' in cfg.model:
        options['attention'], channels = system.classifier
        changes['model.head.in_channels'] = cfg.model.head.in_channels + channels
    if options['attention'] is None or 'zero_init_attention' not in ATTENTION[
            options['attention']].options:
        options['zero_init_attention'] = False
    changes.update({f'model.backbone.{k}': v for k, v in options.items()})
    if not system.pruned:
        hooks = cfg.get('custom_hooks') or []
        changes['custom_hooks'] = [
            hook for hook in Config(dict(hooks=hooks)).to_dict()['hooks']
            if type_name(hook) != 'ELAPruneHook']
    return changes


def _system(name: str) -> System:
    if name not in SYSTEMS:
        raise UsageError(f'system {name!r}: expected one of '
                         f'{", ".join(SYSTEMS)}')
    return SYSTEMS[name]
