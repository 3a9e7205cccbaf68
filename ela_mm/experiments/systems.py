"""Every system that the paper compares, as options of one backbone.

A row of a table is a plain ResNet's config with a few of its keys replaced.
What the options mean is said where they are defined: plugins in
:mod:`ela_mm.models.compared.plugins`, kinds of attention in
:mod:`ela_mm.models.backbones.stages.kinds` and :mod:`ela_mm.models.compared`.
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
    """What of a ResNet decides where a system stands in it.

    Attributes:
        depth (int): Its layers.
        blocks (Tuple[int, ...]): Per stage.
        last (str): The plugin position after a block's last norm.
        reduction (int): Of the stem, from pictures to the first stage's maps.
        picture (Callable): Finds height and width of the pictures.
    """
    depth: int
    blocks: Tuple[int, ...]
    last: str
    reduction: int
    picture: Callable[[], Tuple[int, int]]

    def stages(self, *chosen: int) -> Tuple[bool, ...]:
        """Say of each stage whether it is chosen, by indices from 0."""
        return tuple(i in chosen for i in range(len(self.blocks)))

    def map_size(self, stage: int) -> Tuple[int, ...]:
        """Height and width of a stage's maps, whose index is from 0."""
        return tuple(-(-side // (self.reduction * 2**stage))
                     for side in self.picture())


class System(NamedTuple):
    """One system.

    Attributes:
        attention (str, optional): The backbone's kind of attention. Defaults
            to None.
        plugins (Callable, optional): From a :class:`Shape` to what stands in
            the blocks. Defaults to None.
        pruned (bool): Whether ELAPruneHook runs. Defaults to False.
        classifier (Tuple[str, int], optional): Where classifiers have another
            kind of attention: the kind, and the channels that it adds to what
            the head reads. Defaults to None.
    """
    attention: Optional[str] = None
    plugins: Optional[Callable[[Shape], List[dict]]] = None
    pruned: bool = False
    classifier: Optional[Tuple[str, int]] = None


def _everywhere(kind: str) -> Callable[[Shape], List[dict]]:
    """After the last norm of every block."""
    return lambda shape: [dict(cfg=dict(type=kind), position=shape.last)]


def _global_context(shape: Shape) -> List[dict]:
    """In all stages but the first, c3 to c5.

    The reduction is 16, and 4 at depth 101: so are the runs of its authors
    that tables 2 and 5 print.
    """
    ratio = 1 / 4 if shape.depth == 101 else 1 / 16
    return [dict(cfg=dict(type='ContextBlock', ratio=ratio),
                 position=shape.last,
                 stages=shape.stages(*range(1, len(shape.blocks))))]


def _non_local(shape: Shape) -> List[dict]:
    """One, before the last block of the last stage but one, c4."""
    stage = len(shape.blocks) - 2
    return [dict(cfg=dict(type='NonLocal2d', reduction=2),
                 position=shape.last,
                 stages=shape.stages(stage),
                 blocks=(shape.blocks[stage] - 2, ))]


def _double_attention(shape: Shape) -> List[dict]:
    """In all stages but the first and the last, c3 and c4."""
    return [dict(cfg=dict(type='DoubleAttention'),
                 position=shape.last,
                 stages=shape.stages(*range(1, len(shape.blocks) - 1)))]


def _augmented(shape: Shape) -> List[dict]:
    """In place of the 3x3 convolutions of all stages but the first."""
    return [dict(cfg=dict(type='AugmentedConv2d', map_size=shape.map_size(i)),
                 position='conv2', stages=shape.stages(i))
            for i in range(1, len(shape.blocks))]


#: By the names of the paper's tables; DLA is not in them.
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
    """Options of a backbone class that make it a system's.

    Args:
        name (str): Of :data:`SYSTEMS`.
        backbone (type): One of the ``ELA*`` ResNets.
        depth (int): Its layers.
        picture (Callable): Finds height and width of the pictures, for AA,
            which is made for a size.

    Returns:
        Dict[str, Any]: ``attention`` and ``plugins``.

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
    """Keys of a config that make its network a system's.

    Args:
        name (str): Of :data:`SYSTEMS`.
        cfg (Config): Of a detector or classifier with an ``ELA*`` ResNet, with
            its pictures and depth as they will be.

    Returns:
        Dict[str, Any]: By dotted keys. Attention starts at zero as far as the
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
