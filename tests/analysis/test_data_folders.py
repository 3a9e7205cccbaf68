"""The check before a run knows folders of pictures as the hosts read them."""
import json
from copy import deepcopy

import cv2
import numpy as np
import pytest
from mmcv.transforms import LoadImageFromFile
from mmdet.datasets import CocoDataset
from mmengine.config import Config
from mmengine.registry import DATASETS, TRANSFORMS, DefaultScope

from ela_mm.apis.data_config import check_data
from ela_mm.errors import UsageError

LOAD = dict(type='LoadImageFromFile')
PACK = dict(mmdet=dict(type='PackDetInputs', meta_keys=()),
            mmpretrain=dict(type='PackInputs'),
            mmseg=dict(type='PackSegInputs', meta_keys=()))
XML = """<annotation><size><width>20</width><height>16</height></size>
<object><name>cat</name><difficult>0</difficult><bndbox><xmin>1</xmin>
<ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object></annotation>"""


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    """One picture in every host's order of folders."""
    root = tmp_path_factory.mktemp('folders')
    for folder in ('pictures/0', 'VOC/JPEGImages', 'VOC/Annotations', 'maps'):
        (root / folder).mkdir(parents=True)
    picture = np.zeros((16, 20, 3), np.uint8)
    for name in ('pictures/a.jpg', 'pictures/0/a.jpg', 'VOC/JPEGImages/a.jpg'):
        cv2.imwrite(str(root / name), picture)
    for name in ('maps/a.png', 'maps/pictures.png'):
        cv2.imwrite(str(root / name), picture[..., 0])
    (root / 'VOC' / 'Annotations' / 'a.xml').write_text(XML)
    for name, path in (('coco', 'a.jpg'), ('whole', f'{root}/pictures/a.jpg')):
        (root / f'{name}.json').write_text(json.dumps(dict(
            images=[dict(id=1, file_name=path, width=20, height=16)],
            annotations=[dict(id=1, image_id=1, category_id=1, iscrowd=0,
                              bbox=[1, 1, 8, 8], area=64)],
            categories=[dict(id=1, name='person')])))
    (root / 'list.txt').write_text('a.jpg 0\n')
    (root / 'whole.txt').write_text(f'{root}/pictures/a.jpg 0\n')
    (root / 'names.txt').write_text('a\n')
    return root


class OwnDataset(CocoDataset):
    """Of a user who lets it find the pictures itself."""

    def load_data_list(self):
        return [dict(img_path=f'{self.data_root}/pictures/a.jpg', img_id=0,
                     instances=[], height=16, width=20)]


class NamedDataset(CocoDataset):
    """Of a user who has other classes."""
    METAINFO = dict(classes=('person', ))


class LoadImageFromOwnFile(LoadImageFromFile):
    """Of a user whose pictures lie elsewhere."""

    def transform(self, results):
        return dict(results, img=np.zeros((16, 20, 3), np.uint8),
                    img_shape=(16, 20), ori_shape=(16, 20))


DATASETS.register_module(module=OwnDataset)
DATASETS.register_module(module=NamedDataset)
TRANSFORMS.register_module(module=LoadImageFromOwnFile)


def coco(**options):
    return 'mmdet', dict(type='CocoDataset', ann_file='coco.json',
                         data_prefix=dict(img='pictures/')), options


def folder(**options):
    return 'mmpretrain', dict(type='CustomDataset', ann_file='list.txt',
                              data_prefix='pictures'), options


def maps(**options):
    prefixes = dict(img_path='pictures', seg_map_path='maps')
    return 'mmseg', dict(type='BaseSegDataset', ann_file='names.txt',
                         data_prefix=prefixes), options


def voc(**options):
    return 'mmdet', dict(type='VOCDataset', ann_file='names.txt',
                         data_prefix=dict(sub_data_root='VOC/')), options


SEG = dict(type='mmseg.LoadAnnotations')
CASES = [
    coco(),
    coco(data_prefix=dict(img='gone/')),
    coco(data_prefix=dict(img='')),
    coco(data_prefix=dict(img='{root}/pictures')),
    coco(data_prefix=dict(img='{root}/gone')),
    coco(ann_file='whole.json', data_prefix=dict(img='gone/')),
    coco(ann_file='{root}/coco.json', data_prefix=dict(img='{root}/pictures'),
         data_root='gone'),
    coco(ann_file='{root}/coco.json', data_prefix=dict(img='pictures'),
         data_root='gone'),
    coco(data_prefix=dict(img='pictures', seg='gone')),
    coco(data_prefix=dict(img='pictures', seg='gone'), steps=[dict(
        type='mmdet.LoadAnnotations', with_seg=True)]),
    coco(data_prefix=dict(img='pictures', seg='gone'), steps=[dict(
        type='mmdet.LoadAnnotations', with_bbox=True)]),
    coco(type='OwnDataset', data_prefix=dict(img='gone')),
    coco(type='NamedDataset', data_prefix=dict(img='gone')),
    coco(type='NamedDataset'),
    coco(load='LoadImageFromOwnFile', data_prefix=dict(img='gone')),
    folder(),
    folder(data_prefix='gone'),
    folder(data_prefix=dict(img_path='gone')),
    folder(data_prefix=''),
    folder(ann_file='whole.txt', data_prefix='gone'),
    folder(ann_file='', data_prefix='gone'),
    folder(ann_file=''),
    maps(),
    maps(data_prefix=dict(img_path='gone', seg_map_path='maps')),
    maps(data_prefix=dict(img_path='pictures', seg_map_path='gone')),
    maps(data_prefix=dict(img_path='pictures', seg_map_path='gone'), steps=[SEG]),
    maps(steps=[SEG]),
    maps(ann_file='', data_prefix=dict(img_path='gone', seg_map_path='maps')),
    voc(),
    voc(data_prefix=dict(sub_data_root='gone/')),
]


def configured(case, root):
    scope, dataset, options = deepcopy(case)
    steps = [dict(LOAD, type=options.pop('load', LOAD['type'])),
             *options.pop('steps', []), PACK[scope]]
    text = json.dumps(dict(dataset, **{
        'data_root': '{root}', 'pipeline': steps, **options}))
    return Config(dict(default_scope=scope, val_dataloader=dict(
        dataset=json.loads(text.replace('{root}', str(root))))))


def host_reads(cfg):
    """Whether the host itself gets as far as a first sample."""
    try:
        with DefaultScope.overwrite_default_scope(cfg.default_scope):
            dataset = DATASETS.build(cfg.val_dataloader.dataset)
            return dataset[0] is not None
    except Exception:
        return False


@pytest.fixture(scope='module')
def reads(root):
    """Of every case whether the host reads it; both occur."""
    found = [host_reads(configured(case, root)) for case in CASES]
    assert 10 < sum(found) < len(CASES) - 8
    return found


@pytest.mark.parametrize('number', range(len(CASES)), ids=lambda i: '-'.join(
    (CASES[i][1]['type'], *map(str, CASES[i][2].values()))))
def test_the_check_lets_through_what_the_host_reads(number, reads, root):
    """A folder that is named and missing is said, if the host wants it."""
    case = CASES[number]
    pytest.importorskip(case[0])  # the host
    cfg = configured(case, root)
    if reads[number]:
        check_data(cfg, 'val_dataloader')
    elif 'gone' in str(case):  # else it is a picture, not a folder
        with pytest.raises(UsageError, match=r'gone.*--cfg-options '
                           r'val_dataloader\.dataset\.data_'):
            check_data(cfg, 'val_dataloader')


@pytest.mark.parametrize('place, option', [
    ('dataset', 'backend_args'), ('step', 'backend_args'),
    ('step', 'file_client_args')])
def test_folders_on_other_storage_are_not_looked_for(place, option, root):
    cfg = configured(coco(data_prefix=dict(img='gone')), root)
    dataset = cfg.val_dataloader.dataset
    node = dataset if place == 'dataset' else dataset.pipeline[0]
    node[option] = dict(backend='petrel')
    check_data(cfg, 'val_dataloader')
    node[option] = dict(backend='local')
    with pytest.raises(UsageError, match=r'gone.*data_prefix\.img=FOLDER'):
        check_data(cfg, 'val_dataloader')
    dataset.data_prefix.img = 's3://pictures'
    check_data(cfg, 'val_dataloader')


def test_large_annotations_are_not_read_whole(root, tmp_path):
    """Names that come late are not known; nothing is refused for them."""
    annotations = json.loads((root / 'whole.json').read_text())
    late = dict(info='x' * (1 << 17), **annotations)
    (tmp_path / 'late.json').write_text(json.dumps(late))
    cfg = configured(coco(ann_file=f'{tmp_path}/late.json',
                          data_prefix=dict(img='gone')), root)
    check_data(cfg, 'val_dataloader')


def test_maps_that_a_metric_reads(root):
    cfg = configured(coco(), root)
    cfg.val_evaluator = dict(type='CocoPanopticMetric',
                             seg_prefix=f'{root}/gone')
    with pytest.raises(UsageError, match=r'gone.*val_evaluator\.seg_prefix=PATH'):
        check_data(cfg, 'val_dataloader')
