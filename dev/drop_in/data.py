"""Try the analyses on every kind of dataset and pipeline that the hosts' configs use.

A kind is a dataset within its wrappers, sampler and collation of its loader,
and the steps of its pipeline, nested ones included, of the loader that analyses
read. Of each the first config is taken: its own loader, wrappers, pipeline and
data_preprocessor, a stand-in for the data itself, and a small network.

    python -m dev.drop_in.data
    python -m dev.drop_in.data --host mmpretrain --match cifar
"""
import argparse
import json
import re
import tempfile
import warnings
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Tuple

import cv2
import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.logging import MMLogger
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from rich.console import Console
from rich.progress import track
from torch import nn

import ela_mm  # noqa: F401  before anything imports mmcv.ops
from dev.drop_in.configs import HOSTS, configs_of, inside, reason
from ela_mm.analysis.attention import measure
from ela_mm.analysis.cost import cost_of_config
from ela_mm.analysis.features import look
from ela_mm.analysis.whatif import compare, measured_window
from ela_mm.apis.data import (
    dataset_batches,
    file_batches,
    loader_of,
    picture_shape,
)
from ela_mm.apis.data_config import (
    check_data,
    datasets_of,
    loads_pictures,
    pipeline_of,
    walk,
)
from ela_mm.apis.launch import run
from ela_mm.config_types import enter_scope, type_name
from ela_mm.errors import UsageError

ATTEMPTS = ('check', 'cost', 'what-if', 'Score-CAM')


class Kind(NamedTuple):
    """One kind of dataset and pipeline.

    Attributes:
        host (str): ``'mmdet'`` or ``'mmpretrain'``.
        data (str): Dataset within its wrappers, sampler, collation.
        steps (str): Of its pipeline.
    """
    host: str
    data: str
    steps: str


# --- kinds -------------------------------------------------------------------


def _wrapped(node: Any) -> str:
    """Dataset and wrappers, such as ``RepeatDataset(CocoDataset)``."""
    if isinstance(node, (list, tuple)):
        return ', '.join(dict.fromkeys(map(_wrapped, node)))
    within = node.get('dataset') or node.get('datasets')
    return type_name(node) + (f'({_wrapped(within)})' if within else '')


def kind_of_config(host: str, cfg: Config) -> Kind:
    """Find out which kind a config's analyses read."""
    name = loader_of(cfg)
    loader = cfg[name]
    parts = [_wrapped(loader.dataset)]
    parts += [type_name(loader[key])
              for key in ('sampler', 'batch_sampler', 'collate_fn')
              if loader.get(key)]
    return Kind(host, ', '.join(parts),
                ', '.join(map(type_name, walk(pipeline_of(cfg, name)))))


def catalogue(host: str, match: str,
              progress: Callable) -> Tuple[Dict[Kind, List[str]], int]:
    """The kinds of a host's configs, and how many configs have no data."""
    found: Dict[Kind, List[str]] = {}
    without = 0
    root = configs_of(host)
    paths = sorted(p.relative_to(root) for p in root.rglob('*.py'))
    for path in progress([p for p in paths if p.parts[0] != '_base_'
                          and re.search(match, f'/{host}/{p}')]):
        try:
            with inside(host), warnings.catch_warnings():
                warnings.simplefilter('ignore')
                kind = kind_of_config(host, Config.fromfile(root / path))
        except Exception:  # does not load, or names no data
            without += 1
            continue
        found.setdefault(kind, []).append(str(path))
    return found, without


# --- stand-ins ---------------------------------------------------------------

_SIZE = 160, 120  # width and height


def make_pictures(folder: Path) -> None:
    """Four pictures, and a map of labels."""
    generator = np.random.default_rng(0)
    width, height = _SIZE
    for i in range(4):
        noise = generator.integers(0, 256, (12, 16, 3)).astype(np.uint8)
        cv2.imwrite(str(folder / f'{i}.png'),
                    cv2.resize(noise, _SIZE, interpolation=cv2.INTER_CUBIC))
    cv2.imwrite(str(folder / 'map.png'), np.zeros((height, width, 3), np.uint8))


def _picture_info(folder: str, i: int, arrays: bool) -> dict:
    """What datasets of both hosts say of a picture."""
    width, height = _SIZE
    box = dict(bbox=[10., 10., 90., 80.], bbox_label=0, ignore_flag=0,
               instance_id=i, mask=[[10., 10., 90., 10., 90., 80.]])
    info = dict(
        img_path=f'{folder}/{i}.png', img_id=i, sample_idx=i, width=width,
        height=height, instances=[box], gt_label=[0, 1][i % 2],
        seg_map_path=f'{folder}/map.png', frame_id=i,
        segments_info=[dict(id=0, category=0, is_thing=True)],
        text='a cat', caption_prompt='a cat', custom_entities=False,
        tokens_positive=-1, dataset_mode='VG', gt_caption='a cat',
        question='what', gt_answer=['cat'], gt_answer_weight=[1.],
        image_id=i, question_id=i)
    if arrays:  # as CIFAR's and MNIST's are
        info['img'] = np.full((32, 32, 3), 40 * i, np.uint8)
        info['img_shape'] = info['ori_shape'] = (32, 32)
    return info


class StandIn(BaseDataset):
    """Four pictures with all that a pipeline may ask for.

    Args:
        folder (str): Of :func:`make_pictures`.
        arrays (bool): Whether pictures come as arrays.
        lists (Sequence[str]): Keys that hold several of a sample's values.
        proposals (bool): Whether pictures have proposals.
    """

    METAINFO = dict(classes=('a', 'b'))

    def __init__(self, folder: str, arrays: bool, lists=(),
                 proposals: bool = False, **kwargs) -> None:
        self.folder, self.arrays, self.lists = folder, arrays, lists
        self.proposals = proposals
        super().__init__(**kwargs)

    def load_data_list(self) -> List[dict]:
        infos = [_picture_info(self.folder, i, self.arrays) for i in range(4)]
        for info in infos:
            for key in self.lists:
                info[key] = [info[key]] * 2
            if self.proposals:
                info['proposals'] = dict(
                    bboxes=np.array([[5., 5., 90., 90.]], np.float32),
                    scores=np.ones(1, np.float32))
        return infos

    def get_cat_ids(self, index: int) -> List[int]:
        return [0]


def _frames_class() -> type:
    from mmdet.datasets.base_video_dataset import BaseVideoDataset

    class StandInVideo(BaseVideoDataset):
        """A video of the same four pictures."""
        METAINFO = StandIn.METAINFO

        def __init__(self, folder: str, arrays: bool, lists=(), **kwargs):
            self.folder = folder
            super().__init__(**kwargs)

        def load_data_list(self) -> List[dict]:
            images = [_picture_info(self.folder, i, False) for i in range(4)]
            return [dict(video_id=0, video_length=4, images=images)]

    return StandInVideo


class Network(BaseModel):
    """A small backbone with attention, of any host, that classifies."""

    def __init__(self, channels: int, data_preprocessor=None) -> None:
        super().__init__(data_preprocessor)
        self.backbone = MODELS.build(dict(
            type='mmpretrain.ELAResNet', depth=18, stem_channels=16,
            base_channels=16, in_channels=channels))
        self.head = nn.Linear(128, 2)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        return self.head(self.backbone(inputs)[-1].mean((2, 3)))


# --- trials ------------------------------------------------------------------


def stand_in(cfg: Config, folder: Path) -> Config:
    """Put stand-ins in place of a config's datasets, within their wrappers."""
    name = loader_of(cfg)
    for _, dataset in datasets_of(cfg, name):
        steps = dataset.get('pipeline') or []
        within = list(walk(steps))
        frames = any(type_name(x) == 'TransformBroadcaster' for x in within)
        lists = [x['scatter_key'] for x in within
                 if type_name(x) == 'ApplyToList']
        for key in list(dataset):
            del dataset[key]
        dataset.update(
            type=_frames_class() if frames else StandIn, folder=str(folder),
            arrays=not any(map(loads_pictures, within)), lists=lists,
            pipeline=steps, test_mode=True)
        if any(type_name(x) == 'LoadProposals' for x in within):
            dataset.proposals = True
    for other in ('val_dataloader', 'test_dataloader', 'train_dataloader'):
        if other != name and cfg.get(other) is not None:
            cfg.pop(other)
    return cfg


def _preprocessor(cfg: Config) -> dict:
    """The config's, without what changes a batch for training."""
    options = (cfg.model.get('data_preprocessor')
               or cfg.get('data_preprocessor') or {})
    options = dict(options.get('data_preprocessor') or options)
    options.pop('batch_augments', None)
    if cfg.get('default_scope') == 'mmpretrain' and options:
        options.setdefault('type', 'ClsDataPreprocessor')
    return options or dict(type='mmpretrain.ClsDataPreprocessor')


def _check(cfg: Config) -> None:
    """The data is not there, which has to be said in one line."""
    for name in ('train_dataloader', loader_of(cfg)):
        try:
            check_data(cfg, name)
        except UsageError as error:
            if 'does not exist' not in str(error):
                raise


def _cost(original: Config, cfg: Config, model: nn.Module) -> None:
    """Of the config's pictures, but no larger than is quick to time."""
    for config in (original, cfg):
        shape = picture_shape(config)
        if not all(32 <= side <= 4096 for side in shape):
            raise ArithmeticError(f'pictures of {shape}')
    cost_of_config(cfg, model, [min(side, 64) for side in shape], batch=2,
                   rounds=1)


def try_kind(host: str, config: str, folder: Path) -> Dict[str, str]:
    """Try a config's data: ``'ok'``, or why not, by attempt.

    Args:
        host (str): Whose it is.
        config (str): Path below the host's configs.
        folder (Path): Of :func:`make_pictures`.

    Returns:
        Dict[str, str]: For each of ``ATTEMPTS``.
    """
    torch.manual_seed(0)
    with inside(host), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        original = Config.fromfile(configs_of(host) / config)
        enter_scope(original)
        backbone = original.model.get('backbone') or {}
        cfg = stand_in(Config.fromfile(configs_of(host) / config), folder)
        model = Network(backbone.get('in_channels', 3)
                        if isinstance(backbone.get('in_channels', 3), int)
                        else 3, _preprocessor(cfg)).eval()

        def what_if() -> None:
            found = measure(model, dataset_batches(cfg, 4))
            names = [x.name for x in model.backbone.attention_layers]
            if not compare(measured_window(found.kl, names, 'four')):
                raise ArithmeticError('nothing is compared')

        def maps() -> None:
            (batch, ) = file_batches(cfg, [str(folder / '0.png')])
            cam = look(model, batch, ['layer4.1'], 1).pruned[0].cam
            if not np.isfinite(cam).all():
                raise ArithmeticError('the map is not finite')

        attempts = dict(zip(ATTEMPTS, (
            lambda: _check(original),
            lambda: _cost(original, cfg, model),
            what_if, maps)))
        return {name: _outcome(attempt) for name, attempt in attempts.items()}


def _outcome(attempt: Callable) -> str:
    try:
        attempt()
    except Exception as error:
        return reason(error)
    return 'ok'


def report(results: List[Tuple[Kind, List[str], Dict[str, str]]]) -> None:
    """Print how many kinds pass, and every one that does not."""
    console = Console()
    for host in dict.fromkeys(kind.host for kind, _, _ in results):
        own = [x for x in results if x[0].host == host]
        console.print(f'{host}: {len(own)} kinds, '
                      f'{sum(len(x[1]) for x in own)} configs')
        for name in ATTEMPTS:
            well = [x for x in own if x[2].get(name) == 'ok']
            console.print(f'    {name}: {len(well)} '
                          f'({sum(len(x[1]) for x in well)})')
    for kind, configs, outcome in results:
        for name, value in outcome.items():
            if value != 'ok':
                console.print(
                    f'{name}: NO. {value}\n    {kind.data}\n    {kind.steps}'
                    f'\n    {len(configs)} configs, {configs[0]}',
                    markup=False, highlight=False, soft_wrap=True)


def _tried(kinds: Dict[Kind, List[str]], path: Path) -> Iterator[tuple]:
    with tempfile.TemporaryDirectory() as folder, open(
            path, 'a', encoding='utf-8') as file:
        make_pictures(Path(folder))
        for kind, configs in kinds.items():
            try:
                outcome = try_kind(kind.host, configs[0], Path(folder))
            except Exception as error:  # of the config or the network
                outcome = dict.fromkeys(ATTEMPTS, reason(error))
            file.write(json.dumps([kind, configs, outcome]) + '\n')
            file.flush()
            yield kind, configs, outcome


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--host', choices=HOSTS, action='append',
                        help='may be repeated; default: all')
    parser.add_argument('--match', default='', help='only configs whose '
                        '/host/folder/file.py matches this regular expression')
    parser.add_argument('--out', default='work_dirs/drop_in_data.jsonl',
                        help='one line a kind; default %(default)s')
    parser.add_argument('--again', action='store_true',
                        help='only what did not pass, as --out has it')
    args = parser.parse_args()
    MMLogger.get_current_instance().setLevel('ERROR')
    path = Path(args.out)
    path.parent.mkdir(parents=True, exist_ok=True)
    kinds: Dict[Kind, List[str]] = {}
    passed: Dict[Kind, Tuple[List[str], Dict[str, str]]] = {}
    if args.again:
        for line in path.read_text(encoding='utf-8').splitlines():
            kind, configs, outcome = json.loads(line)
            kinds[Kind(*kind)] = configs
            passed[Kind(*kind)] = configs, outcome
        passed = {kind: value for kind, value in passed.items()
                  if set(value[1].values()) == {'ok'}}
        kinds = {kind: x for kind, x in kinds.items() if kind not in passed}
    for host in () if args.again else args.host or HOSTS:
        found, without = catalogue(
            host, args.match, lambda paths, host=host: track(
                paths, f'reading the configs of {host}'))
        print(f'{host}: {without} configs do not load or name no data')
        kinds.update(found)
    tried = list(track(_tried(kinds, path), 'trying', total=len(kinds)))
    report([(kind, *value) for kind, value in passed.items()] + tried)


if __name__ == '__main__':
    run(main)
