"""Stands in for the data and the network of a host's config."""
from pathlib import Path
from typing import List

import cv2
import numpy as np
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from torch import nn

from ela_mm.apis.data import loader_of
from ela_mm.apis.data_config import datasets_of, loads_pictures, walk
from ela_mm.config_types import type_name

_SIZE = 160, 120  # width and height


def make_pictures(folder: Path) -> None:
    """Four pictures, a map of labels, and one of things and stuff."""
    generator = np.random.default_rng(0)
    width, height = _SIZE
    for i in range(4):
        noise = generator.integers(0, 256, (12, 16, 3)).astype(np.uint8)
        cv2.imwrite(str(folder / f'{i}.png'),
                    cv2.resize(noise, _SIZE, interpolation=cv2.INTER_CUBIC))
    for name, shape in (('map', (height, width)), ('panoptic', (height, width, 3))):
        cv2.imwrite(str(folder / f'{name}.png'), np.zeros(shape, np.uint8))


def _picture_info(folder: str, i: int, arrays: bool) -> dict:
    """What datasets of the hosts say of a picture."""
    width, height = _SIZE
    box = dict(bbox=[10., 10., 90., 80.], bbox_label=0, ignore_flag=0,
               instance_id=i, mask=[[10., 10., 90., 10., 90., 80.]])
    info = dict(
        img_path=f'{folder}/{i}.png', img_path2=f'{folder}/{i}.png', img_id=i,
        sample_idx=i, width=width, height=height, instances=[box],
        gt_label=[0, 1][i % 2],
        seg_map_path=f'{folder}/map.png', depth_map_path=f'{folder}/map.png',
        seg_fields=[], label_map=None, frame_id=i,
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
        panoptic (bool): Whether maps tell things from stuff.
        reduce_zero_label (bool): Whether the label 0 of maps is none.
    """

    METAINFO = dict(classes=('a', 'b'))

    def __init__(self, folder: str, arrays: bool, lists=(),
                 proposals: bool = False, panoptic: bool = False,
                 reduce_zero_label: bool = False, **kwargs) -> None:
        self.folder, self.arrays, self.lists = folder, arrays, lists
        self.proposals, self.panoptic = proposals, panoptic
        self.reduce_zero_label = reduce_zero_label
        super().__init__(**kwargs)

    def load_data_list(self) -> List[dict]:
        infos = [_picture_info(self.folder, i, self.arrays) for i in range(4)]
        for info in infos:
            info['reduce_zero_label'] = self.reduce_zero_label
            if self.panoptic:
                info['seg_map_path'] = f'{self.folder}/panoptic.png'
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
        if any(x.get('reduce_zero_label') for x in within):
            dataset.reduce_zero_label = True
        if any('Panoptic' in type_name(x) for x in within):
            dataset.panoptic = True
    for other in ('val_dataloader', 'test_dataloader', 'train_dataloader'):
        if other != name and cfg.get(other) is not None:
            cfg.pop(other)
    return cfg


def preprocessor(cfg: Config) -> dict:
    """The config's, without what changes a batch for training."""
    options = (cfg.model.get('data_preprocessor')
               or cfg.get('data_preprocessor') or {})
    options = dict(options.get('data_preprocessor') or options)
    options.pop('batch_augments', None)
    if cfg.get('default_scope') == 'mmpretrain' and options:
        options.setdefault('type', 'ClsDataPreprocessor')
    return options or dict(type='mmpretrain.ClsDataPreprocessor')
