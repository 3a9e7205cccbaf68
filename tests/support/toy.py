"""A small model and dataset, to try the hook in a real Runner."""
import torch
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, METRICS, MODELS
from mmengine.runner import Runner
from torch.utils.data import Dataset

import ela_mm  # noqa: F401
from ela_mm.hosts.mmdet import ELAResNet


@DATASETS.register_module(force=True)
class ToyDataset(Dataset):
    """The same pictures of noise in every process.

    Args:
        size (int): Number of pictures.
        label (int | str | None): Label of all but the first two; a word raises
            an error when a picture is loaded. By default labels alternate.
    """

    def __init__(self, size: int = 8, label=None) -> None:
        self.label = label
        generator = torch.Generator().manual_seed(7)
        self.images = torch.randn(size, 3, 32, 32, generator=generator)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict:
        if isinstance(self.label, str):
            raise KeyError(self.label)
        target = index % 2 if self.label is None or index < 2 else self.label
        return dict(inputs=self.images[index], targets=target)


@MODELS.register_module(force=True)
class ToyClassifier(BaseModel):
    """An ELAResNet and a linear classifier."""

    def __init__(self, backbone: dict) -> None:
        super().__init__()
        self.backbone = MODELS.build(backbone)
        self.head = torch.nn.Linear(128, 2)

    def forward(self, inputs, targets=None, mode='tensor'):
        features = self.backbone(inputs)[-1].mean((2, 3))
        logits = self.head(features)
        if mode == 'loss':
            return dict(
                loss=torch.nn.functional.cross_entropy(logits, targets))
        return logits


def toy_config(work_dir, max_epochs=3, windows=((1, 1), ), hooks=(),
               **overrides) -> Config:
    """A config of the toy with ELAPruneHook.

    Args:
        work_dir (Path): Where the run writes.
        max_epochs (int): Of 4 iterations each.
        windows (Sequence): Of ELAPruneHook; None leaves the hook out.
        hooks (Sequence[dict]): Further hooks.
        **overrides: Dotted keys of the config, and ``hook`` for arguments of
            ELAPruneHook.
    """
    prune = dict(
        type='ELAPruneHook',
        windows=list(windows or ()),
        **{
            'criterion': dict(type='EBQM', alpha=5.0, beta=1.0, mu=0.3),
            'picture': False,  # drawing takes longer than training the toy
            **overrides.pop('hook', {})
        })
    cfg = Config(
        dict(
            custom_imports=dict(imports=['ela_mm']),
            model=dict(
                type='ToyClassifier',
                backbone=dict(
                    type='mmdet.ELAResNet',
                    depth=34,
                    base_channels=16,
                    norm_eval=False)),
            train_dataloader=dict(
                batch_size=2,
                num_workers=0,
                sampler=dict(type='DefaultSampler', shuffle=True),
                collate_fn=dict(type='default_collate'),
                dataset=dict(type='ToyDataset')),
            train_cfg=dict(by_epoch=True, max_epochs=max_epochs),
            optim_wrapper=dict(
                optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.1)),
            custom_hooks=[] if windows is None else [prune] + list(hooks),
            default_hooks=dict(
                checkpoint=dict(type='CheckpointHook', interval=1)),
            env_cfg=dict(),  # which mmengine 0.8 insists on
            randomness=dict(seed=0),
            log_level='INFO',
            work_dir=str(work_dir),
            experiment_name=f'toy_{abs(hash(str(work_dir)))}'))
    cfg.merge_from_dict(overrides)
    return cfg


def toy_runner(work_dir, **kwargs) -> Runner:
    """The Runner of :func:`toy_config`."""
    return Runner.from_cfg(toy_config(work_dir, **kwargs))


@METRICS.register_module(force=True)
class ToyMetric(BaseMetric):
    """The sum of all logits' squares: any change of the network shows."""

    def process(self, data_batch, data_samples) -> None:
        self.results += [logits.double().square().sum().item()
                         for logits in data_samples]

    def compute_metrics(self, results) -> dict:
        return dict(energy=sum(results))


def validation(interval: int = 1) -> dict:
    """Overrides of :func:`toy_config` that validate with ToyMetric."""
    loader = dict(
        batch_size=4,
        num_workers=0,
        sampler=dict(type='DefaultSampler', shuffle=False),
        collate_fn=dict(type='default_collate'),
        dataset=dict(type='ToyDataset'))
    return dict(
        val_dataloader=loader,
        val_cfg=dict(),
        val_evaluator=dict(type='ToyMetric'),
        **{'train_cfg.val_interval': interval})


@torch.no_grad()
def energy(model) -> float:
    """ToyMetric's value, computed by hand."""
    model.eval()
    images = ToyDataset().images
    return ToyMetric().compute_metrics([
        logits.double().square().sum().item()
        for batch in images.split(4) for logits in model(batch)
    ])['energy']


def small_network():
    """mmdet's ELAResNet-18, its attention as if it had been trained."""
    net = ELAResNet(
        18, base_channels=16, norm_eval=False,
        zero_init_attention=True).train()
    for name, parameter in net.named_parameters():
        if name.endswith(('bias', 'scale.weight')):
            torch.nn.init.normal_(parameter, std=0.3)
    return net
