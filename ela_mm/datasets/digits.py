"""Scatters scikit-learn's handwritten digits over images.

Each image has several digits of different sizes. For detection there are tight
boxes and masks in COCO's format, for segmentation a label for each pixel. The
digits for training and validation are disjoint, and everything depends on a
seed alone.
"""
import json
import os
import os.path as osp
import tempfile
from typing import Callable, List, Tuple

import cv2
import numpy as np

CLASSES = tuple(str(digit) for digit in range(10))
# Number of digits for training, of scikit-learn's 1797 of 8x8 pixels.
NUM_TRAIN_DIGITS = 1400
# Smallest and largest side of a pasted digit in pixels.
SIZES = (18, 40)
DIGITS_PER_IMAGE = (3, 5)
# The largest share of a digit's box that another digit's box may cover.
MAX_OVERLAP = 0.1
# Brightness, out of 255, above which a pixel of a digit counts as ink.
INK = 80


def load_split(split: str) -> Tuple[np.ndarray, np.ndarray]:
    """Load scikit-learn's digits for training or for validation.

    Args:
        split (str): Split: ``'train'`` (1400 digits) or ``'val'`` (397).

    Returns:
        tuple: (N, 8, 8) float64 images from 0 to 16, and (N, ) int labels.

    Raises:
        ImportError: If scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise ImportError(
            'the digits come from scikit-learn, which is not installed: pip '
            'install scikit-learn, or ela_mm[demo]') from None
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    members = dict(
        train=order[:NUM_TRAIN_DIGITS], val=order[NUM_TRAIN_DIGITS:])[split]
    return digits.images[members], digits.target[members]


def make_digits(root: str,
                num_train: int = 256,
                num_val: int = 80,
                size: int = 96,
                seed: int = 0) -> None:
    """Write the set: ``train.json``, ``val.json``, ``train/`` and ``val/``.

    The folder is created atomically, so that processes which start together may
    all call this.

    Args:
        root (str): Folder to create.
        num_train (int): Number of images for training. Defaults to 256.
        num_val (int): Number of images for validation. Defaults to 80.
        size (int): Side of the square images in pixels. Defaults to 96.
        seed (int): Seed that determines all images. Defaults to 0.

    Raises:
        ImportError: If scikit-learn is not installed.
    """
    _make(root, _write_split, num_train, num_val, size, seed)


def make_digit_maps(root: str,
                    num_train: int = 256,
                    num_val: int = 80,
                    size: int = 96,
                    seed: int = 0) -> None:
    """Write the same images with a label for each pixel, for segmentation.

    Label maps are in ``train_maps/`` and ``val_maps/``: 0 where there is no
    ink, otherwise the digit plus 1.

    Args:
        root (str): Folder to create, atomically.
        num_train (int): Number of images for training. Defaults to 256.
        num_val (int): Number of images for validation. Defaults to 80.
        size (int): Side of the square images in pixels. Defaults to 96.
        seed (int): Seed that determines all images. Defaults to 0.

    Raises:
        ImportError: If scikit-learn is not installed.
    """
    _make(root, _write_maps, num_train, num_val, size, seed)


def _make(root: str, write: Callable, num_train: int, num_val: int, size: int,
          seed: int) -> None:
    rng = np.random.default_rng(seed)
    parent = osp.dirname(osp.abspath(root))
    os.makedirs(parent, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=parent) as place:
        # The temporary folder is private; this one has the user's permissions.
        folder = osp.join(place, 'digits')
        os.mkdir(folder)
        try:
            for split, count in (('train', num_train), ('val', num_val)):
                write(folder, split, *load_split(split), count, size, rng)
            os.rename(folder, root)
        except OSError:
            if not osp.isdir(root):  # else another process was faster
                raise


def _write_maps(folder: str, split: str, images: np.ndarray,
                labels: np.ndarray, count: int, size: int,
                rng: np.random.Generator) -> None:
    pictures, maps = (osp.join(folder, split + x) for x in ('', '_maps'))
    for place in (pictures, maps):
        os.makedirs(place)
    for number in range(count):
        canvas, objects = _compose(images, labels, size, rng)
        label_map = np.zeros((size, size), np.uint8)
        for label, mask in objects:
            label_map[mask] = label + 1
        for place, picture in ((pictures, canvas), (maps, label_map)):
            cv2.imwrite(osp.join(place, f'{number:05d}.png'), picture)


def _write_split(folder: str, split: str, images: np.ndarray,
                 labels: np.ndarray, count: int, size: int,
                 rng: np.random.Generator) -> None:
    # mmdet depends on it; mmpretrain, which does not, needs no boxes.
    from pycocotools import mask as coco_mask
    os.makedirs(osp.join(folder, split))
    coco = dict(
        images=[],
        annotations=[],
        categories=[dict(id=i, name=name) for i, name in enumerate(CLASSES)])
    for image_id in range(count):
        canvas, objects = _compose(images, labels, size, rng)
        file_name = f'{image_id:05d}.png'
        cv2.imwrite(osp.join(folder, split, file_name), canvas)
        coco['images'].append(
            dict(id=image_id, file_name=file_name, width=size, height=size))
        for label, mask in objects:
            rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
            box = coco_mask.toBbox(rle)  # x, y, width, height: tight
            area = coco_mask.area(rle)
            coco['annotations'].append(
                dict(
                    id=len(coco['annotations']) + 1,
                    image_id=image_id,
                    category_id=int(label),
                    bbox=box.tolist(),
                    area=int(area),
                    iscrowd=0,
                    segmentation=dict(
                        size=rle['size'], counts=rle['counts'].decode())))
    with open(osp.join(folder, f'{split}.json'), 'w', encoding='utf-8') as file:
        json.dump(coco, file)


def _compose(
    images: np.ndarray, labels: np.ndarray, size: int, rng: np.random.Generator
) -> Tuple[np.ndarray, List[Tuple[int, np.ndarray]]]:
    """Make an image (size, size) uint8 and its objects (label, ink mask)."""
    canvas = rng.normal(40, 12, (size, size))
    covered: List[np.ndarray] = []  # boxes x1 y1 x2 y2
    objects = []
    wanted = rng.integers(DIGITS_PER_IMAGE[0], DIGITS_PER_IMAGE[1] + 1)
    for _ in range(20 * wanted):  # a crowded canvas takes no more: give up
        if len(objects) == wanted:
            break
        pick = rng.integers(len(labels))
        side = int(rng.integers(SIZES[0], SIZES[1] + 1))
        left, top = rng.integers(0, size - side + 1, 2)
        ink = cv2.resize(
            images[pick] * (255 / 16), (side, side),
            interpolation=cv2.INTER_CUBIC).clip(0, 255)
        mask = np.zeros((size, size), bool)
        mask[top:top + side, left:left + side] = ink > INK
        ys, xs = np.nonzero(mask)
        box = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
        if any(_overlap(box, other) > MAX_OVERLAP for other in covered):
            continue
        window = canvas[top:top + side, left:left + side]
        np.maximum(window, ink * rng.uniform(0.7, 1), out=window)
        covered.append(box)
        objects.append((int(labels[pick]), mask))
    return canvas.clip(0, 255).astype(np.uint8), objects


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Compute the intersection over the smaller of two boxes."""
    width, height = (np.minimum(a[2:], b[2:]) -
                     np.maximum(a[:2], b[:2])).clip(min=0)
    areas = [np.prod(box[2:] - box[:2]) for box in (a, b)]
    return float(width * height / min(areas))
