"""Loads configs, and models with their checkpoints."""
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
from mmengine.registry import HOOKS, MODELS
from mmengine.runner import CheckpointLoader
from torch import nn

from ..config_types import enter_scope, type_name
from ..engine.checkpoints import DEPLOY_KEY
from ..engine.hooks.ela_prune_hook import ELAPruneHook
from ..errors import UsageError
from ..models.backbones.layer_attention_mixin import ela_backbones
from .downloads import download_explained
from .options import options_explained

# Errors that mmengine raises on an option that does not fit the config.
_MISFITS = (AttributeError, KeyError, TypeError)


class _SafeLoader(getattr(yaml, 'CSafeLoader', yaml.SafeLoader)):
    """A safe YAML loader that reads tuples, which mmengine writes.

    It uses the C implementation if there is one, since a `_base_` with
    `mmdet::` reads some eighty files.
    """


_SafeLoader.add_constructor(
    'tag:yaml.org,2002:python/tuple',
    lambda loader, node: tuple(loader.construct_sequence(node, deep=True)))


class _SafeYaml(YamlHandler):

    def load_from_fileobj(self, file, **kwargs):
        return yaml.load(file, Loader=_SafeLoader)


def check_is_config(path: str) -> None:
    """Raise a UsageError unless a path has the extension of a config."""
    if osp.splitext(path)[1] not in ('.py', '.json', '.yaml', '.yml'):
        raise UsageError(f'{path!r} is no config: expected a .py, .json or '
                         '.yaml file (the config comes before the checkpoint)')


def config_from_file(path: str) -> Config:
    """Read a config file and import its ``custom_imports``.

    YAML is read by a safe loader, whereas mmengine's would create any object
    that the file names. A config is trusted all the same: what it names is
    imported, built and called.

    Args:
        path (str): Path of a Python, JSON or YAML file.

    Returns:
        Config: The config. If a run has dumped it from a pure Python config,
        classes that are named by their modules become classes again, since some
        modules of hosts do not take such names.

    Raises:
        UsageError: If the file does not exist or is no config.
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
        for key, value in dict.items(node):  # ConfigDict.items imports all
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
    except Exception:  # importing its package may raise anything
        return False


def settings(words: Union[Sequence[str], Dict[str, Any], None]
             ) -> Dict[str, Any]:
    """Parse the values of ``--cfg-options``, as mmengine does.

    mmengine parses them with the command line. That would import torch before
    ``--help`` is answered, so tools call this later.

    Args:
        words (Sequence[str] | dict | None): Words such as
            ``['a.b=1', 'c=[x,y]']``; or options that are parsed already.

    Returns:
        Dict[str, Any]: Options by key.

    Raises:
        UsageError: On a word without a key, or a value that mmengine cannot
            parse.
    """
    if isinstance(words, dict):
        return words
    parser = argparse.ArgumentParser()
    parser.add_argument('--it', nargs=1, action=DictAction, default={})
    options: Dict[str, Any] = {}
    for word in words or ():
        if not re.match(r'[^=]+=', word):
            raise UsageError(f'--cfg-options {word!r}: expected key=value')
        try:
            options.update(parser.parse_args([f'--it={word}']).it)
        except (AssertionError, RecursionError):
            raise UsageError(
                f'--cfg-options {word!r}: mmengine reads numbers, words, lists '
                '[a,b] and tuples (a,b), with all brackets closed; a mapping '
                'needs a dotted key for each of its values (a.b=1), and within '
                'a new list a config of its own') from None
    return options


def override(cfg: Config, options: Optional[Dict[str, Any]]) -> None:
    """Override settings of a config, all at once.

    Args:
        cfg (Config): Config, changed in place.
        options (Dict[str, Any], optional): Values by dotted keys; numbers are
            indices of lists.

    Raises:
        UsageError: If an option does not fit the config; it names the option.
    """
    try:
        cfg.merge_from_dict(options or {})
    except _MISFITS as error:
        pairs = list(options.items())
        key, value = next(
            (pair for pair in pairs if not _fits(cfg, *pair)), pairs[0])
        raise UsageError(
            f'{key}={value!r} does not fit the config '
            f'({str(error.args[0])[:200]}): expected dotted keys that follow '
            'its mappings and lists, and a mapping to replace a mapping'
        ) from error


def _fits(cfg: Config, key: str, value: Any) -> bool:
    try:
        deepcopy(cfg).merge_from_dict({key: value})
    except _MISFITS:
        return False
    return True


def read_config(path: str, options: Optional[dict] = None) -> Config:
    """Read the config file of a model.

    Args:
        path (str): Path of a Python, JSON or YAML file.
        options (dict, optional): Values to override, by dotted keys.

    Returns:
        Config: The config; its ``custom_imports`` are imported.

    Raises:
        UsageError: If the file does not exist or is no config of a model, or if
            an option does not fit.
    """
    cfg = config_from_file(path)
    override(cfg, options)
    if cfg.get('model') is None:
        raise UsageError(f'the config {path!r} has no model')
    return cfg


def build_model(cfg: Config) -> nn.Module:
    """Build a config's model, with random weights and all layers active.

    Args:
        cfg (Config): Config of the model.

    Returns:
        nn.Module: The model, on the CPU.

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
    """Build a config's model, with or without an ELA backbone.

    Raises:
        UsageError: On an option that its class does not have.
    """
    enter_scope(cfg)
    config = deepcopy(cfg.model)
    if cfg.get('data_preprocessor') is not None:  # as Runner does
        config.setdefault('data_preprocessor', cfg.data_preprocessor)
    with options_explained(cfg.model, 'model.'):
        return MODELS.build(config)


def load_model(cfg: Config, path: str) -> Tuple[nn.Module, dict]:
    """Build a config's model with the weights and the mask of a checkpoint.

    Args:
        cfg (Config): Config of the model.
        path (str): Path of a checkpoint that was trained with this config.
            With EMA, its ``state_dict`` has the averaged weights.

    Returns:
        tuple: The model in eval mode on the CPU, and the checkpoint.

    Raises:
        UsageError: If the model has no ELA backbone, or if the checkpoint does
            not fit the model.
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
    # As in mmengine, for data parallel models that others have saved.
    state = {re.sub(r'^module\.', '', k): v for k, v in state.items()}
    checkpoint['state_dict'] = state
    try:
        missing, unexpected = model.load_state_dict(state, strict=False)
    except UsageError:
        raise
    except RuntimeError as error:  # different shapes
        line = str(error).splitlines()[-1].strip()
        raise UsageError(_does_not_fit(path, line)) from None
    # Hosts may report entries as missing that they recompute after loading.
    missing = [name for name in missing if name not in state]
    if missing or unexpected:
        what = (f'it lacks {missing[0]!r}' if missing else
                f'the model has no {unexpected[0]!r}')
        raise UsageError(
            _does_not_fit(
                path, f'{what}, the first of '
                f'{len(missing) + len(unexpected)} such names'))
    model.eval()
    # For analyses. Hosts' inferencers set dataset_meta in the same way.
    meta = checkpoint.get('meta')
    meta = meta if isinstance(meta, dict) else {}
    model.deployed = DEPLOY_KEY in meta
    model.dataset_meta = meta.get('dataset_meta') or {}
    return model, checkpoint


def _does_not_fit(path: str, why: str) -> str:
    return (f'checkpoint {path!r} does not fit the config: {why}; expected a '
            'checkpoint that this very config has trained')


def criterion_of(cfg: Config) -> Optional[dict]:
    """Return the criterion of a config's ELAPruneHook.

    Args:
        cfg (Config): Config of a training.

    Returns:
        dict | None: Config of the criterion; None if it is the default, or if
        there is no such hook.
    """
    return (prune_hook_of(cfg) or {}).get('criterion')


def redundancy_of(cfg: Config) -> str:
    """Return the measure that a config's ELAPruneHook ranks by.

    Args:
        cfg (Config): Config of a training.

    Returns:
        str: A key of :data:`ela_mm.pruning.kl.REDUNDANCY`; ``'paper'`` if there
        is no such hook.
    """
    return (prune_hook_of(cfg) or {}).get('redundancy', 'paper')


def skip_mode_of(cfg: Config) -> str:
    """Return how a config's ELAPruneHook skips layers.

    Args:
        cfg (Config): Config of a training.

    Returns:
        str: ``'layer'`` or ``'retrieval'``, see ``skip_layers`` of the
        backbone; ``'layer'`` if there is no such hook.
    """
    return (prune_hook_of(cfg) or {}).get('skip', 'layer')


def prune_hook_of(cfg: Config) -> Optional[Dict[str, Any]]:
    """Return the config of a config's ELAPruneHook, or of a user's subclass.

    Args:
        cfg (Config): Config of a training.

    Returns:
        Dict[str, Any] | None: Config of the first; None if there is none.
    """
    hooks = [x for x in cfg.get('custom_hooks') or [] if isinstance(x, dict)]
    for hook in hooks:  # looking a class up may import all hooks of a host
        if type_name(hook) == 'ELAPruneHook':
            return hook
    with HOOKS.switch_scope_and_registry(cfg.get('default_scope')) as registry:
        for hook in hooks:
            kind = hook.get('type')
            kind = registry.get(kind) if isinstance(kind, str) else kind
            if isinstance(kind, type) and issubclass(kind, ELAPruneHook):
                return hook
    return None
