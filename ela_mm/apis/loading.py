"""From a config and a checkpoint to a model."""
import os.path as osp
import re
from copy import deepcopy
from typing import Optional, Tuple

from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import CheckpointLoader
from torch import nn

from ..engine.checkpoints import DEPLOY_KEY
from ..errors import UsageError
from ..models.backbones.layer_attention_mixin import ela_backbones


def read_config(path: str, options: Optional[dict] = None) -> Config:
    """Read a config file.

    Args:
        path (str): Of a Python, JSON or YAML file.
        options (dict, optional): Settings to override, nested keys by dots.

    Returns:
        Config: What it imports is imported.

    Raises:
        UsageError: If it does not exist or is no config.
    """
    if not osp.isfile(path):
        raise UsageError(f'config {path!r} does not exist: expected the path '
                         'of a config file')
    if osp.splitext(path)[1] not in ('.py', '.json', '.yaml', '.yml'):
        raise UsageError(f'{path!r} is no config: expected a .py, .json or '
                         '.yaml file (the config comes before the checkpoint)')
    cfg = Config.fromfile(path)
    cfg.merge_from_dict(options or {})
    if cfg.get('model') is None:
        raise UsageError(f'the config {path!r} has no model')
    return cfg


def build_model(cfg: Config) -> nn.Module:
    """Build a config's model, with random weights and all layers active.

    Args:
        cfg (Config): Of a detector or a classifier.

    Returns:
        nn.Module: On the CPU.

    Raises:
        UsageError: If the model has no ELA backbone.
    """
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    config = deepcopy(cfg.model)
    if cfg.get('data_preprocessor') is not None:  # as Runner does
        config.setdefault('data_preprocessor', cfg.data_preprocessor)
    model = MODELS.build(config)
    if not ela_backbones(model):
        kind = cfg.model.get('backbone', {}).get('type')
        raise UsageError(
            f'the config has no ELA backbone (backbone.type={kind!r}): '
            "expected one such as 'ELAResNet'")
    return model


def load_model(cfg: Config, path: str) -> Tuple[nn.Module, dict]:
    """Build a config's model with the weights and the mask of a checkpoint.

    Args:
        cfg (Config): Of a detector or a classifier.
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
    checkpoint = CheckpointLoader.load_checkpoint(path, map_location='cpu')
    state = checkpoint.get('state_dict')
    if not isinstance(state, dict):
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
    if missing or unexpected:
        what = (f'it lacks {missing[0]!r}' if missing else
                f'the model has no {unexpected[0]!r}')
        raise UsageError(
            _does_not_fit(
                path, f'{what}, the first of '
                f'{len(missing) + len(unexpected)} such names'))
    model.eval()
    # For analyses; the names of the classes as the hosts' inferencers do.
    model.deployed = DEPLOY_KEY in checkpoint.get('meta', {})
    model.dataset_meta = checkpoint.get('meta', {}).get('dataset_meta') or {}
    return model, checkpoint


def _does_not_fit(path: str, why: str) -> str:
    return (f'checkpoint {path!r} does not fit the config: {why}; expected a '
            'checkpoint that this very config has trained')


