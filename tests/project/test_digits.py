"""The embedded detection set."""
import json

import cv2
import numpy as np
import pytest
from mmdet.registry import DATASETS
from pycocotools import mask as coco_mask
from sklearn.datasets import load_digits

from ela_mm.datasets import digits
from ela_mm.datasets.digits import INK, MAX_OVERLAP, make_digit_maps, make_digits


def annotations(root, split):
    return json.loads((root / f'{split}.json').read_text())


def test_boxes_are_tight_on_the_masks(digits_root):
    coco = annotations(digits_root, 'train')
    assert len(coco['images']) == 12 and len(coco['categories']) == 10
    for annotation in coco['annotations']:
        mask = coco_mask.decode(annotation['segmentation'])
        ys, xs = np.nonzero(mask)
        x, y, width, height = annotation['bbox']
        assert [xs.min(), ys.min()] == [x, y]
        assert [xs.max() + 1, ys.max() + 1] == [x + width, y + height]
        assert mask.sum() == annotation['area'] > 0


def test_masks_lie_on_ink(digits_root):
    coco = annotations(digits_root, 'train')
    for annotation in coco['annotations'][:20]:
        image = cv2.imread(
            str(digits_root / 'train' / f'{annotation["image_id"]:05d}.png'))
        mask = coco_mask.decode(annotation['segmentation']).astype(bool)
        assert image[mask].min() > 0.6 * INK
        assert image[mask].mean() > image.mean() + 30


def test_several_digits_of_several_sizes_that_hardly_overlap(digits_root):
    coco = annotations(digits_root, 'train')
    heights = [a['bbox'][3] for a in coco['annotations']]
    assert max(heights) > 1.4 * min(heights)
    assert len({a['category_id'] for a in coco['annotations']}) > 5
    for image in coco['images']:
        boxes = np.array([a['bbox'] for a in coco['annotations']
                          if a['image_id'] == image['id']])
        assert len(boxes) >= 2
        for i, (x, y, w, h) in enumerate(boxes):
            for x2, y2, w2, h2 in boxes[i + 1:]:
                width = min(x + w, x2 + w2) - max(x, x2)
                height = min(y + h, y2 + h2) - max(y, y2)
                if min(width, height) > 0:
                    assert width * height <= MAX_OVERLAP * min(
                        w * h, w2 * h2)


def test_the_seed_decides_everything(digits_root, tmp_path):
    make_digits(str(tmp_path / 'a'), num_train=12, num_val=4, size=64, seed=1)
    make_digits(str(tmp_path / 'b'), num_train=12, num_val=4, size=64, seed=2)
    files = ['train.json', 'val.json', 'train/00003.png', 'val/00001.png']
    for name in files:
        same = (digits_root / name).read_bytes()
        assert (tmp_path / 'a' / name).read_bytes() == same
        assert (tmp_path / 'b' / name).read_bytes() != same


def test_label_maps_say_what_the_masks_say(digits_root, tmp_path):
    """On the pictures of the detection set with the same seed."""
    root = tmp_path / 'maps'
    make_digit_maps(str(root), num_train=12, num_val=4, size=64, seed=1)
    coco = annotations(digits_root, 'train')
    for image in coco['images']:
        name = image['file_name']
        assert (root / 'train' / name).read_bytes() == (
            digits_root / 'train' / name).read_bytes()
        labels = cv2.imread(str(root / 'train_maps' / name), 0)
        expected = np.zeros((64, 64), np.uint8)
        for annotation in coco['annotations']:  # later ones lie on top
            if annotation['image_id'] == image['id']:
                mask = coco_mask.decode(annotation['segmentation'])
                expected[mask.astype(bool)] = annotation['category_id'] + 1
        assert np.array_equal(labels, expected)
    assert len(list((root / 'val_maps').iterdir())) == 4


def test_train_and_val_share_no_digit(monkeypatch, tmp_path):
    used = {}

    def remember(folder, split, images, *args):
        used[split] = {image.tobytes() for image in images}

    monkeypatch.setattr(digits, '_write_split', remember)
    make_digits(str(tmp_path / 'digits'))
    every = {image.tobytes() for image in load_digits().images}
    assert used['train'] | used['val'] == every
    assert not used['train'] & used['val']


def test_dataset_makes_itself_once(tmp_path, monkeypatch):
    monkeypatch.setattr(
        'ela_mm.datasets.mmdet.make_digits',
        lambda root: make_digits(root, num_train=3, num_val=2))
    config = dict(
        type='mmdet.DigitsDetectionDataset',
        data_root=str(tmp_path / 'digits'),
        ann_file='train.json',
        data_prefix=dict(img='train/'),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='mmdet.LoadAnnotations', with_bbox=True, with_mask=True)
        ])
    dataset = DATASETS.build(config)
    sample = dataset[0]
    assert len(dataset) == 3 and sample['img'].shape == (96, 96, 3)
    masks = sample['gt_masks'].to_ndarray()
    assert len(masks) == len(sample['gt_bboxes']) and masks.any((1, 2)).all()
    written = (tmp_path / 'digits' / 'train.json').stat().st_mtime_ns
    DATASETS.build(config)
    assert (tmp_path / 'digits' / 'train.json').stat().st_mtime_ns == written


def test_a_failure_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(digits, '_compose', None)
    with pytest.raises(TypeError):
        make_digits(str(tmp_path / 'digits'))
    assert list(tmp_path.iterdir()) == []
