"""The digits as a dataset of mmdet."""
import os.path as osp

from mmdet.datasets import CocoDataset
from mmdet.registry import DATASETS

from .digits import CLASSES, make_digits


@DATASETS.register_module()
class DigitsDetectionDataset(CocoDataset):
    """Images with handwritten digits, made on first use.

    Takes the arguments of :class:`mmdet.datasets.CocoDataset`. If ``data_root``
    does not exist, :func:`~ela_mm.datasets.digits.make_digits` creates it.
    """

    METAINFO = dict(classes=CLASSES)
    MAKES_ITS_DATA = True

    def load_data_list(self) -> list:
        """Make the set if needed, then load it as mmdet does."""
        if not osp.isdir(self.data_root):
            make_digits(self.data_root)
        return super().load_data_list()
