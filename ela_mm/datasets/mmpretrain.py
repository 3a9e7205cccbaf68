"""The digits as a dataset of mmpretrain."""
import cv2
import numpy as np
from mmpretrain.datasets import BaseDataset
from mmpretrain.registry import DATASETS

from ..errors import UsageError
from .digits import CLASSES, load_split


@DATASETS.register_module()
class DigitsClassificationDataset(BaseDataset):
    """Scikit-learn's handwritten digits, one in each image, in memory.

    Training and validation have the same digits as the detection set with any
    seed: the first and the last ones of a fixed order.

    Args:
        split (str): Split: ``'train'`` (1400 digits) or ``'val'`` (397).
        size (int): Side of the images in pixels, scaled up from 8. Defaults to
            16.
        **kwargs: Further arguments of mmpretrain's BaseDataset.

    Raises:
        UsageError: On another split.
    """

    METAINFO = dict(classes=CLASSES)
    MAKES_ITS_DATA = True

    def __init__(self, split: str, size: int = 16, **kwargs) -> None:
        if split not in ('train', 'val'):
            raise UsageError(f"split={split!r}: expected 'train' or 'val'")
        self.split = split
        self.size = size
        super().__init__(ann_file='', test_mode=split == 'val', **kwargs)

    def load_data_list(self) -> list:
        """Load the digits as (size, size, 3) uint8 images with labels."""
        images, labels = load_split(self.split)
        return [
            dict(
                img=np.repeat(
                    cv2.resize(
                        image.astype(np.float32) * (255 / 16),
                        (self.size, self.size)).astype(np.uint8)[..., None],
                    3,
                    axis=2),
                gt_label=int(label)) for image, label in zip(images, labels)
        ]
