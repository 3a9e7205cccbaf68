"""A training set of mmengine's kind, for what asks more of its dataset."""
import torch
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS, TRANSFORMS


@TRANSFORMS.register_module(force=True)
class ToyNoise:
    """Noise on the picture, drawn anew each time.

    Attributes:
        calls (int): Pictures that this very transform has seen.
    """
    calls = 0

    def __call__(self, data: dict) -> dict:
        self.calls += 1
        return dict(
            inputs=data['image'] + .05 * torch.randn(3, 32, 32),
            targets=data['number'] % 2)


@DATASETS.register_module(force=True)
class ToyPictures(BaseDataset):
    """Pictures of noise, brighter where the target is 1.

    Attributes:
        served (list): Numbers of the pictures that were loaded.
    """

    def __init__(self, size: int = 16, serialize: bool = False) -> None:
        self.size = size
        self.served = []
        # Serializing collects garbage, which takes seconds beside torch.
        super().__init__(pipeline=[dict(type='ToyNoise')],
                         serialize_data=serialize)

    def load_data_list(self) -> list:
        return [dict(number=i) for i in range(self.size)]

    @property
    def images(self) -> torch.Tensor:
        """All pictures that are trained on, (N, 3, 32, 32)."""
        return torch.stack([self.get_data_info(i)['image']
                            for i in range(len(self))])

    def get_data_info(self, index: int) -> dict:
        info = super().get_data_info(index)
        self.served.append(info['number'])
        generator = torch.Generator().manual_seed(info['number'])
        info['image'] = .5 * (info['number'] % 2) + torch.randn(
            3, 32, 32, generator=generator)
        return info
