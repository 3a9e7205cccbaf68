"""Replace ResNets by ELA's in the hosts' configs, and try what comes out.

What builds with the plain backbone has to build with ELA, and what runs a
training step has to run one with ELA. ``python -m dev.drop_in.run`` counts
both over all configs that a host installs.
"""
import copy
import hashlib
import json
import os
import warnings
from contextlib import contextmanager, nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Tuple

import numpy as np
import torch
import torch.distributed as dist
from mmengine.config import Config, ConfigDict
from mmengine.logging import MessageHub
from mmengine.optim import OptimWrapper
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData
from torch import nn

from ela_mm.models.backbones.layer_attention_mixin import LayerAttentionMixin

HOSTS = ('mmdet', 'mmpretrain', 'mmseg')
# Entries of a model's config that name weights, which nothing here needs.
_WEIGHTS = ('pretrained', 'teacher_ckpt')
# What a training step is tried with, in turn, until the plain network takes it.
_DETECTOR_INPUTS = ((64, 1), (64, 8), (128, 1), (256, 1))
_CLASSIFIER_VIEWS = (1, 2, 8)
_SEGMENTOR_SIZES = (64, 128, 256)


class Entry(NamedTuple):
    """One model that occurs in a host's configs.

    Attributes:
        host (str): One of ``HOSTS``.
        key (str): Hash of the model's config.
        family (str): Folder of the first config, such as ``'faster_rcnn'``.
        configs (List[str]): Paths below the host's configs with this model.
        backbones (List[str]): Types that are replaced.
    """
    host: str
    key: str
    family: str
    configs: List[str]
    backbones: List[str]


def configs_of(host: str) -> Path:
    """The folder of the configs that a host has installed."""
    return Path(import_module(host).__file__).parent / '.mim' / 'configs'


@contextmanager
def _inside(host: str) -> Iterator[None]:
    """The host's scope, and the folder that its configs' paths start from."""
    before = os.getcwd()
    os.chdir(configs_of(host).parent)
    try:
        with DefaultScope.overwrite_default_scope(host):
            yield
    finally:
        os.chdir(before)


def load_model(host: str, config: str) -> dict:
    """The model of a config, without weights to load.

    Args:
        host (str): Whose config it is.
        config (str): Path below the host's configs.

    Returns:
        dict: What ``MODELS.build`` takes; configs that a model names by path,
        such as a teacher's, are put in its place.

    Raises:
        Exception: Whatever the config does not load for.
    """
    with _inside(host), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        cfg = Config.fromfile(configs_of(host) / config)
        model = cfg.model.to_dict()
        if 'data_preprocessor' in cfg:  # as Runner does
            model.setdefault('data_preprocessor',
                             cfg.data_preprocessor.to_dict())
        if isinstance(model.get('teacher_config'), str):
            teacher = Config.fromfile(model['teacher_config'])
            model['teacher_config'] = dict(model=teacher.model.to_dict())
    return _without_weights(model)


def _loads(node: Any) -> bool:
    """Whether it is an ``init_cfg`` that loads a checkpoint."""
    return isinstance(node, dict) and node.get('type') == 'Pretrained'


def _without_weights(node: Any) -> Any:
    if isinstance(node, dict):
        return {
            key: _without_weights(value)
            for key, value in node.items()
            if key not in _WEIGHTS and not _loads(value)
        }
    if isinstance(node, (list, tuple)):
        return type(node)(_without_weights(n) for n in node if not _loads(n))
    return node


def replace_backbones(node: Any, host: str,
                      replaced: Optional[List[str]] = None) -> Any:
    """Replace every ResNet that ELA has a variant of, wherever it stands.

    Args:
        node (Any): A model's config; left as it is.
        host (str): Scope of types that name none.
        replaced (List[str], optional): Written: the types that were replaced.

    Returns:
        Any: The same with ``ELAResNet`` for ``ResNet`` and so on.
    """
    replaced = [] if replaced is None else replaced
    if isinstance(node, dict):
        node = {
            key: replace_backbones(value, host, replaced)
            for key, value in node.items()
        }
        kind = node.get('type')
        if isinstance(kind, str):
            scope, _, name = kind.rpartition('.')
            scope = scope or host
            if scope in HOSTS and f'ELA{name}' in import_module(
                    f'{scope}.registry').MODELS.module_dict:
                replaced.append(kind)
                node['type'] = f'{scope}.ELA{name}'
        return node
    if isinstance(node, (list, tuple)):
        return type(node)(replace_backbones(n, host, replaced) for n in node)
    return node


def catalogue(host: str, progress=iter) -> Tuple[List[Entry], Dict[str, str]]:
    """All models of a host's configs that have a ResNet to replace.

    Configs that differ in schedule or data alone share an entry.

    Args:
        host (str): One of ``HOSTS``.
        progress (Callable): Wraps the list of paths. Defaults to iter.

    Returns:
        Tuple[List[Entry], Dict[str, str]]: The entries, ordered so that every
        family comes before any comes twice; and by path why a config does not
        load or has no such backbone.
    """
    found: Dict[str, Entry] = {}
    others = {}
    root = configs_of(host)
    paths = sorted(p.relative_to(root) for p in root.rglob('*.py'))
    for path in progress([p for p in paths if p.parts[0] != '_base_']):
        replaced: List[str] = []
        try:
            model = load_model(host, str(path))
            replace_backbones(model, host, replaced)
        except Exception as error:  # counted, and not this package's
            others[str(path)] = reason(error)
            continue
        if not replaced:
            others[str(path)] = 'no ResNet'
            continue
        key = hashlib.sha1(
            json.dumps(model, sort_keys=True,
                       default=str).encode()).hexdigest()[:12]
        entry = found.setdefault(
            key, Entry(host, key, path.parts[0], [], replaced))
        entry.configs.append(str(path))
    return _interleave(list(found.values())), others


def _interleave(entries: List[Entry]) -> List[Entry]:
    """Every family's first entry, then every family's second, and so on."""
    seen: Dict[str, int] = {}
    order = []
    # Small networks first: r18 and r50 before r101 and x101.
    for entry in sorted(entries, key=lambda e: '101' in e.configs[0]):
        order.append(seen.get(entry.family, 0))
        seen[entry.family] = order[-1] + 1
    ranked = zip(order, sorted(entries, key=lambda e: '101' in e.configs[0]))
    return [entry for _, entry in sorted(ranked, key=lambda pair: pair[0])]


# --- one model ---------------------------------------------------------------


def reason(error: BaseException) -> str:
    """One line of an error."""
    lines = str(error).strip().splitlines() or ['']
    return f'{type(error).__name__}: {lines[-1][:200]}'


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
    with _inside(host), warnings.catch_warnings(), initialization, group:
        warnings.simplefilter('ignore')
        built = import_module(f'{host}.registry').MODELS.build(
            ConfigDict(copy.deepcopy(model)))
        if weights:
            built.init_weights()
    return built


def _without_augments(model: dict) -> dict:
    """Leave out what pads or resizes batches to the size of real training."""
    preprocessor = model.get('data_preprocessor') or {}
    for node in (preprocessor, preprocessor.get('data_preprocessor') or {}):
        if node.get('batch_augments'):
            node['batch_augments'] = None
        if node.get('size'):  # mmseg's: of the crops
            node.update(size=None, size_divisor=1)
    return model


def inputs_for(model: nn.Module, host: str) -> Iterator[Tuple[str, Any]]:
    """Random batches of two pictures that a model may take.

    Args:
        model (nn.Module): A whole detector, classifier or segmentor.
        host (str): Whose it is.

    Yields:
        Tuple[str, Any]: A description, and what the data loader would return.
    """
    # Some of mmpretrain's configs are detectors, to try its backbones in.
    if host == 'mmdet' or type(model).__module__.startswith('mmdet.'):
        yield from _detector_inputs(model)
    elif host == 'mmseg':
        yield from _segmentor_inputs(model)
    else:
        yield from _classifier_inputs()


def _detector_inputs(model: nn.Module) -> Iterator[Tuple[str, Any]]:
    from mmdet.models.detectors import SemiBaseDetector
    from mmdet.models.mot import BaseMOTModel
    from mmdet.models.reid import BaseReID
    from mmdet.structures import ReIDDataSample
    from mmdet.testing import demo_mm_inputs, demo_track_inputs
    if isinstance(model, BaseMOTModel):
        for size in (128, 256):
            np.random.seed(0)
            yield f'two frames, {size} px', demo_track_inputs(
                batch_size=1, num_frames=2, key_frames_inds=[0],
                image_shapes=[(3, size, size)], num_items=[3],
                num_classes=1, with_mask=True)
        return
    if isinstance(model, BaseReID):
        sample = ReIDDataSample().set_gt_label(np.array([0, 0, 1, 1]))
        yield '4 crops of 2 persons, 256 x 128 px', dict(
            inputs=[torch.randn(4, 3, 256, 128)], data_samples=[sample])
        return
    for size, stride in _DETECTOR_INPUTS:
        np.random.seed(0)
        data = demo_mm_inputs(
            batch_size=2, image_shapes=[(3, size, size)] * 2,
            num_items=[3, 2], num_classes=2, with_mask=True,
            with_semantic=True, sem_seg_output_strides=stride,
            use_box_type=True)
        for sample in data['data_samples']:
            truth = sample.gt_instances
            # A box of half the picture, so that every assigner has a positive.
            truth.bboxes.tensor[0] = torch.tensor(
                [.25, .25, .75, .75]) * size
            truth.bboxes = truth.bboxes.tensor
            truth.labels = truth.labels * 0  # which every detector has
            truth.masks.masks[0, size // 4:size * 3 // 4,
                              size // 4:size * 3 // 4] = 1
            sample.ignored_instances = InstanceData(
                bboxes=torch.zeros(0, 4))
            sample.proposals = InstanceData(
                bboxes=truth.bboxes.clone(),
                scores=torch.ones(len(truth.bboxes)))
            sample.set_metainfo(dict(
                homography_matrix=np.eye(3, dtype=np.float32)))
        note = f'2 pictures, {size} px'
        if stride != 1:
            note += f', semantic map at 1/{stride}'
        if isinstance(model, SemiBaseDetector):
            branches = ('sup', 'unsup_teacher', 'unsup_student')
            data = {
                key: {branch: copy.deepcopy(value) for branch in branches}
                for key, value in data.items()
            }
            note += ', with and without labels'
        yield note, data


def _segmentor_inputs(model: nn.Module) -> Iterator[Tuple[str, Any]]:
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample
    for size in _SEGMENTOR_SIZES:
        generator = torch.Generator().manual_seed(0)
        # Regions of 16 px, each of a class.
        labels = torch.randint(
            0, model.num_classes, (2, 1, size // 16, size // 16),
            generator=generator).repeat_interleave(16, 2).repeat_interleave(
                16, 3)  # (2, 1, size, size)
        shape = dict(ori_shape=(size, size), img_shape=(size, size))
        samples = [
            SegDataSample(
                gt_sem_seg=PixelData(data=x), metainfo=dict(shape))
            for x in labels
        ]
        pictures = torch.randint(
            0, 256, (2, 3, size, size), dtype=torch.uint8,
            generator=generator)
        yield f'2 pictures, {size} px', dict(
            inputs=list(pictures), data_samples=samples)


def _classifier_inputs() -> Iterator[Tuple[str, Any]]:
    from mmpretrain.structures import DataSample
    for views in _CLASSIFIER_VIEWS:
        samples = [DataSample().set_gt_label(i % 2) for i in range(4)]
        pictures = [torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8)
                    for _ in range(views)]
        yield (f'4 pictures, 64 px, {views} view' + 's' * (views > 1),
               dict(inputs=pictures if views > 1 else pictures[0],
                    data_samples=samples))


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
    moved = {}
    handles = [
        parameter.register_hook(
            lambda grad, name=name: moved.update({name: bool(grad.any())}))
        for name, parameter in _attention_values(model)
    ]
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
    still = [name for name, _ in _attention_values(model) if name not in moved]
    if still or (moved and not any(moved.values())):
        raise ArithmeticError('attention got no gradient: '
                              f'{", ".join(still[:3]) or "all are 0"}')
    return losses


def _attention_values(model: nn.Module) -> Iterator[Tuple[str, nn.Parameter]]:
    """Trainable values of the attention in the stages that are used."""
    for prefix, backbone in model.named_modules():
        if not isinstance(backbone, LayerAttentionMixin):
            continue
        used = backbone.res_layers[:max(backbone.out_indices) + 1]
        for name, parameter in backbone.named_parameters():
            if (name.endswith('value.weight') and parameter.requires_grad
                    and name.split('.')[0] in used):
                yield f'{prefix}.{name}', parameter


def try_model(entry: Entry, steps: bool = True) -> Dict[str, Any]:
    """Build a model plain and with ELA, and train one step with each.

    Args:
        entry (Entry): From :func:`catalogue`.
        steps (bool): Whether to train. Defaults to True.

    Returns:
        Dict[str, Any]: ``plain_build``, ``ela_build``, ``plain_step`` and
        ``ela_step``, each ``'ok'``, the reason why not, or missing if it was
        not tried; ``inputs``, what the steps were made with.
    """
    result: Dict[str, Any] = {}
    plain = _without_augments(load_model(entry.host, entry.configs[0]))
    chosen: Optional[Tuple[str, Any]] = None
    for kind, cfg in (('plain', plain),
                      ('ela', replace_backbones(plain, entry.host))):
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
        with _inside(entry.host):
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


# --- counting ----------------------------------------------------------------


def count(entries: List[Entry],
          results: Dict[str, Dict[str, Any]]) -> Dict[str, Tuple[int, int]]:
    """Count models, and the configs that they stand for.

    Args:
        entries (List[Entry]): From :func:`catalogue`.
        results (Dict[str, Dict[str, Any]]): Of :func:`try_model`, by key.

    Returns:
        Dict[str, Tuple[int, int]]: Models and configs, for ``found`` and for
        each of try_model's four attempts the tried and those that went well.
    """
    counts = {'found': (len(entries), sum(len(e.configs) for e in entries))}
    for attempt in ('plain_build', 'ela_build', 'plain_step', 'ela_step'):
        tried = [e for e in entries if attempt in results.get(e.key, {})]
        well = [e for e in tried if results[e.key][attempt] == 'ok']
        for name, some in ((f'{attempt} tried', tried), (attempt, well)):
            counts[name] = len(some), sum(len(e.configs) for e in some)
    return counts
