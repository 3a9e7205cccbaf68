"""The models of the hosts' configs, with ELA's backbones in their places."""
import hashlib
import json
import os
import warnings
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Tuple

from mmengine.config import Config
from mmengine.registry import DefaultScope

HOSTS = ('mmdet', 'mmpretrain', 'mmseg')
# Entries of a model's config that name weights, which nothing here needs.
_WEIGHTS = ('pretrained', 'teacher_ckpt')
# Why a config that loads is left out.
NO_BACKBONE = 'no backbone with ELA'


class Entry(NamedTuple):
    """One model that occurs in a host's configs.

    Attributes:
        host (str): One of ``HOSTS``.
        key (str): Hash of the model's config.
        family (str): Folder of the first config, such as ``'faster_rcnn'``.
        configs (List[str]): Paths below the host's configs with this model.
        backbones (List[str]): Types that are replaced; none where ELA has no
            variant of any.
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
def inside(host: str) -> Iterator[None]:
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
    with inside(host), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        cfg = Config.fromfile(configs_of(host) / config)
        model = cfg.model.to_dict()
        scope = cfg.get('default_scope', host)
        if scope != host and scope in HOSTS:  # a classifier's of mmdet
            model['_scope_'] = scope
        if 'data_preprocessor' in cfg:  # as Runner does
            model.setdefault('data_preprocessor',
                             cfg.data_preprocessor.to_dict())
        if isinstance(model.get('teacher_config'), str):
            teacher = Config.fromfile(model['teacher_config'])
            model['teacher_config'] = dict(model=teacher.model.to_dict())
    return _without_weights(model)


def _loads(node: Any) -> bool:
    """Whether it is an ``init_cfg`` that loads a checkpoint."""
    return isinstance(node, dict) and (
        node.get('type') == 'Pretrained' or set(node) == {'checkpoint'})


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
    """Replace every backbone that ELA has a variant of, wherever it stands.

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
    """All models of a host's configs.

    Configs that differ in schedule or data alone share an entry.

    Args:
        host (str): One of ``HOSTS``.
        progress (Callable): Wraps the list of paths. Defaults to iter.

    Returns:
        Tuple[List[Entry], Dict[str, str]]: The entries, ordered so that every
        family comes before any comes twice, and those without a backbone to
        replace last; and by path why a config does not load or has no such
        backbone.
    """
    found: Dict[str, Entry] = {}
    others = {}
    root = configs_of(host)
    paths = sorted(p.relative_to(root) for p in root.rglob('*.py'))
    for path in progress([p for p in paths if p.parts[0] != '_base_']):
        replaced: List[str] = []
        try:
            model = load_model(host, str(path))
            replace_backbones(model, model.get('_scope_', host), replaced)
        except Exception as error:  # counted, and not this package's
            others[str(path)] = reason(error)
            continue
        if not replaced:
            others[str(path)] = NO_BACKBONE
        key = hashlib.sha1(
            json.dumps(model, sort_keys=True,
                       default=str).encode()).hexdigest()[:12]
        entry = found.setdefault(
            key, Entry(host, key, path.parts[0], [], replaced))
        entry.configs.append(str(path))
    entries = list(found.values())
    return (_interleave([e for e in entries if e.backbones])
            + [e for e in entries if not e.backbones]), others


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


def reason(error: BaseException) -> str:
    """One line of an error."""
    lines = str(error).strip().splitlines() or ['']
    return f'{type(error).__name__}: {lines[-1][:200]}'


def count(entries: List[Entry],
          results: Dict[str, Dict[str, Any]]) -> Dict[str, Tuple[int, int]]:
    """Count models, and the configs that they stand for.

    Args:
        entries (List[Entry]): From :func:`~dev.drop_in.configs.catalogue`.
        results (Dict[str, Dict[str, Any]]): Of
            :func:`~dev.drop_in.trial.try_model`, by key.

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
