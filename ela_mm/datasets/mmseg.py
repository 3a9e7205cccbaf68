"""The digits as a dataset of mmseg."""
import os.path as osp

from mmseg.datasets import BaseSegDataset
from mmseg.registry import DATASETS

from .digits import CLASSES, make_digit_maps


@DATASETS.register_module()
class DigitsSegmentationDataset(BaseSegDataset):
    """Images with handwritten digits and label maps, made on first use.

    Class 0 is the background, class 1 the digit 0. If ``data_root`` does not
    exist, :func:`~ela_mm.datasets.digits.make_digit_maps` creates it.

    Args:
        img_suffix (str): Suffix of image files. Defaults to ``'.png'``.
        **kwargs: Further arguments of :class:`mmseg.datasets.BaseSegDataset`.
    """

    METAINFO = dict(
        classes=('background', *CLASSES),
        # matplotlib's tab10, on gray.
        palette=[[127, 127, 127], [31, 119, 180], [255, 127, 14],
                 [44, 160, 44], [214, 39, 40], [148, 103, 189], [140, 86, 75],
                 [227, 119, 194], [188, 189, 34], [23, 190, 207],
                 [255, 255, 255]])
    MAKES_ITS_DATA = True

    def __init__(self, img_suffix: str = '.png', **kwargs) -> None:
        super().__init__(img_suffix=img_suffix, **kwargs)

    def load_data_list(self) -> list:
        """Make the set if needed, then load it as mmseg does."""
        if not osp.isdir(self.data_root):
            make_digit_maps(self.data_root)
        return super().load_data_list()
