"""From a config and a checkpoint to a model."""
import argparse
import os.path as osp
import re
from copy import deepcopy
from importlib.util import find_spec
from typing import Any, Dict, Optional, Sequence, Tuple, Union

import yaml
from mmengine.config import Config, DictAction
from mmengine.config.lazy import LazyObject
from mmengine.fileio.handlers import YamlHandler, file_handlers
from mmengine.registry import MODELS
from mmengine.runner import CheckpointLoader
from torch import nn

from ..config_types import enter_scope, type_name
from ..engine.checkpoints import DEPLOY_KEY
from ..errors import UsageError
from ..models.backbones.layer_attention_mixin import ela_backbones
from .downloads import download_explained

# What mmengine raises on an option for a place that is not there, or of another
# kind.
_MISFITS = (AttributeError, KeyError, TypeError)


class _SafeLoader(getattr(yaml, 'CSafeLoader', yaml.SafeLoader)):
    """With tuples, which mmengine writes.

    In C where it is there: `mmdet::` in a `_base_` reads some eighty files.
    """


_SafeLoader.add_constructor(
    'tag:yaml.org,2002:python/tuple',
    lambda loader, node: tuple(loader.construct_sequence(node, deep=True)))


class _SafeYaml(YamlHandler):

    def load_from_fileobj(self, file, **kwargs):
        return yaml.load(file, Loader=_SafeLoader)


def check_is_config(path: str) -> None:
    """Raise a UsageError unless a file is one by its name."""
    if osp.splitext(path)[1] not in ('.py', '.json', '.yaml', '.yml'):
        raise UsageError(f'{path!r} is no config: expected a .py, .json or '
                         '.yaml file (the config comes before the checkpoint)')


def config_from_file(path: str) -> Config:
    """Read a config file; one in YAML makes no objects while it is read.

    mmengine would make those that the file asks for. A config is trusted all
    the same: what it names is imported, built and called.

    Args:
        path (str): Of a Python, JSON or YAML file.

    Returns:
        Config: What it imports is imported. A pure Python config that a run
        has dumped names its classes by their modules; it has classes again,
        since some of the hosts' modules do not take such names.

    Raises:
        UsageError: If it does not exist or is no config.
    """
    if not osp.isfile(path):
        raise UsageError(f'config {path!r} does not exist: expected the path '
                         'of a config file')
    check_is_config(path)
    before = dict(file_handlers)
    file_handlers.update(yaml=_SafeYaml(), yml=_SafeYaml())
    try:
        cfg = Config.fromfile(path)
    except yaml.YAMLError as error:
        raise UsageError(f'config {path!r} is not read: '
                         f'{str(error).splitlines()[0]}') from None
    finally:
        file_handlers.update(before)
    if cfg.get('default_scope') is None:
        _restore_classes(cfg._cfg_dict)
    return cfg


def _restore_classes(node: Any) -> None:
    """Make types such as ``'mmcv.ops.RoIAlign'`` the classes they name."""
    if isinstance(node, dict):
        for key, value in dict.items(node):  # ConfigDict's would import all
            if key == 'type' and isinstance(value, str):
                module, _, name = value.rpartition('.')
                # 'mmdet.ResNet' is a scope and a registered name.
                if '.' in module and _is_module(module):
                    dict.__setitem__(node, key, LazyObject(module, name))
            else:
                _restore_classes(value)
    elif isinstance(node, (list, tuple)):
        for item in node:
            _restore_classes(item)


def _is_module(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except Exception:  # whatever importing its package raises
        return False


def settings(words: Union[Sequence[str], Dict[str, Any], None]
             ) -> Dict[str, Any]:
    """Read what ``--cfg-options`` was given, as mmengine does.

    It does not do so while a command line is parsed, which would take the
    import of torch before ``--help`` is answered.

    Args:
        words (Sequence[str] | dict | None): Such as ``['a.b=1', 'c=[x,y]']``;
            read already; or nothing.

    Returns:
        Dict[str, Any]: By key.

    Raises:
        UsageError: On a word without a key or a value.
    """
    if isinstance(words, dict):
        return words
    for word in words or ():
        if not re.match(r'[^=]+=', word):
            raise UsageError(f'--cfg-options {word!r}: expected key=value')
    parser = argparse.ArgumentParser()
    parser.add_argument('--it', nargs='*', action=DictAction, default={})
    return parser.parse_args(['--it', *(words or ())]).it


def override(cfg: Config, options: Optional[Dict[str, Any]]) -> None:
    """Override settings of a config, all at once.

    Args:
        cfg (Config): Changed in place.
        options (Dict[str, Any], optional): Nested keys by dots; numbers index
            lists.

    Raises:
        UsageError: On one that does not fit the config, which it names.
    """
    try:
        cfg.merge_from_dict(options or {})
    except _MISFITS as error:
        pairs = list(options.items())
        key, value = next(
            (pair for pair in pairs if not _fits(cfg, *pair)), pairs[0])
        raise UsageError(
            f'{key}={value!r} does not fit the config '
            f'({str(error.args[0])[:200]}): expected keys that lead through '
            'its mappings and lists, and a mapping where one stands') from error


def _fits(cfg: Config, key: str, value: Any) -> bool:
    try:
        deepcopy(cfg).merge_from_dict({key: value})
    except _MISFITS:
        return False
    return True


def read_config(path: str, options: Optional[dict] = None) -> Config:
    """Read the config file of a model.

    Args:
        path (str): Of a Python, JSON or YAML file.
        options (dict, optional): Settings to override, nested keys by dots.

    Returns:
        Config: What it imports is imported.

    Raises:
        UsageError: If it does not exist or is no config of a model, or an
            option does not fit.
    """
    cfg = config_from_file(path)
    override(cfg, options)
    if cfg.get('model') is None:
        raise UsageError(f'the config {path!r} has no model')
    return cfg


def build_model(cfg: Config) -> nn.Module:
    """Build a config's model, with random weights and all layers active.

    Args:
        cfg (Config): Of a detector, a classifier or a segmentor.

    Returns:
        nn.Module: On the CPU.

    Raises:
        UsageError: If the model has no ELA backbone.
    """
    model = build_any_model(cfg)
    if not ela_backbones(model):
        kind = type_name(cfg.model.get('backbone', {}))
        raise UsageError(
            f'the config has no ELA backbone (backbone.type={kind!r}): '
            "expected one such as 'ELAResNet'")
    return model


def build_any_model(cfg: Config) -> nn.Module:
    """:func:`build_model` of any config, with an ELA backbone or without."""
    enter_scope(cfg)
    config = deepcopy(cfg.model)
    if cfg.get('data_preprocessor') is not None:  # as Runner does
        config.setdefault('data_preprocessor', cfg.data_preprocessor)
    return MODELS.build(config)


def load_model(cfg: Config, path: str) -> Tuple[nn.Module, dict]:
    """Build a config's model with the weights and the mask of a checkpoint.

    Args:
        cfg (Config): Of a detector, a classifier or a segmentor.
        path (str): Any checkpoint that this config has trained. If EMA ran,
            mmengine has saved the averaged weights as its ``state_dict``,
            and these are taken.

    Returns:
        tuple: The model in eval mode on the CPU, and the checkpoint.

    Raises:
        UsageError: If the model has no ELA backbone, or the checkpoint is
            another model's.
    """
    model = build_model(cfg)
    with download_explained(path):
        checkpoint = CheckpointLoader.load_checkpoint(
            path, map_location='cpu')
    state = checkpoint.get('state_dict') if isinstance(checkpoint,
                                                       dict) else None
    if not isinstance(state, dict) or not all(
            isinstance(name, str) for name in state):
        raise UsageError(f'{path!r} holds no state_dict: expected a checkpoint '
                         'that mmengine has written')
    # As mmengine does: data parallel models saved by others.
    state = {re.sub(r'^module\.', '', k): v for k, v in state.items()}
    checkpoint['state_dict'] = state
    try:
        missing, unexpected = model.load_state_dict(state, strict=False)
    except UsageError:
        raise
    except RuntimeError as error:  # sizes
        line = str(error).splitlines()[-1].strip()
        raise UsageError(_does_not_fit(path, line)) from None
    # Not what a host's module leaves out of what it loads, to compute it anew.
    missing = [name for name in missing if name not in state]
    if missing or unexpected:
        what = (f'it lacks {missing[0]!r}' if missing else
                f'the model has no {unexpected[0]!r}')
        raise UsageError(
            _does_not_fit(
                path, f'{what}, the first of '
                f'{len(missing) + len(unexpected)} such names'))
    model.eval()
    # For analyses; the names of the classes as the hosts' inferencers do.
    meta = checkpoint.get('meta')
    meta = meta if isinstance(meta, dict) else {}
    model.deployed = DEPLOY_KEY in meta
    model.dataset_meta = meta.get('dataset_meta') or {}
    return model, checkpoint


def _does_not_fit(path: str, why: str) -> str:
    return (f'checkpoint {path!r} does not fit the config: {why}; expected a '
            'checkpoint that this very config has trained')


def criterion_of(cfg: Config) -> Optional[dict]:
    """The criterion that a config's ELAPruneHook has.

    Args:
        cfg (Config): Any.

    Returns:
        dict | None: Its config; None where it is the default, or there is no
        such hook.
    """
    return _prune_hook(cfg).get('criterion')


def redundancy_of(cfg: Config) -> str:
    """What the criterion of a config's ELAPruneHook ranks by.

    Args:
        cfg (Config): Any.

    Returns:
        str: A key of :data:`ela_mm.pruning.kl.REDUNDANCY`; ``'paper'`` where
        there is no such hook.
    """
    return _prune_hook(cfg).get('redundancy', 'paper')


def skip_mode_of(cfg: Config) -> str:
    """How the config's ELAPruneHook skips layers.

    Args:
        cfg (Config): Any.

    Returns:
        str: ``'layer'`` or ``'retrieval'``, see ``skip_layers`` of the
        backbone; ``'layer'`` where there is no such hook.
    """
    return _prune_hook(cfg).get('skip', 'layer')


def _prune_hook(cfg: Config) -> dict:
    """The arguments of the config's ELAPruneHook; empty without one."""
    for hook in cfg.get('custom_hooks') or []:
        if type_name(hook).endswith('ELAPruneHook'):
            return hook if isinstance(hook, dict) else {}
    return {}
