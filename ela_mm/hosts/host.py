"""What only a host knows; by itself, of models that are of no host."""
from copy import deepcopy
from typing import Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

import torch
from mmengine.config import Config, ConfigDict
from mmengine.evaluator import DumpResults
from torch import Tensor, nn

from ..config_types import datasets_within, type_name
from ..errors import UsageError


class Explained(NamedTuple):
    """How to score what a network finds in a picture, for Score-CAM.

    Attributes:
        answer (Callable): From a network to a module that takes pictures
            (B, 3, H, W) and returns one answer for each; the network may be
            another than was asked, such as the same with all layers.
        target (Callable): From an answer to a scalar tensor.
        label (str): What is scored, in words.
    """
    answer: Callable[[nn.Module], nn.Module]
    target: Callable[..., Tensor]
    label: str


class Host:
    """What one host does in its own way; each has its subclass and instance.

    The class itself serves models that are of no host, registered with
    mmengine: as far as it can, it treats them as classifiers.

    Attributes:
        scope (str): Of its registries, also the name of its package.
        main_metrics (Tuple[str, ...]): Which of a run's metrics stands for
            it, the first that there is.
        exportable (Dict[str, str]): Parts, beside the backbone, that an ONNX
            file can hold, and whose models have them, such as
            ``{'classifier': 'an mmpretrain ImageClassifier'}``.
        deep_stem (Tuple[str, ...]): Modules of the stem of three convolutions:
            each convolution and, after it, its norm.
        tta_model (dict, optional): Config of the model that averages over
            flips, for configs without a ``tta_model``.
        tta_meta_keys (Tuple[str, ...]): What the last step of a test pipeline
            has to pack for it; empty: what the config packs.
    """

    scope = 'mmengine'
    main_metrics: Tuple[str, ...] = ()
    exportable: Dict[str, str] = {}
    deep_stem: Tuple[str, ...] = ()
    tta_model: Optional[dict] = None
    tta_meta_keys: Tuple[str, ...] = ()

    def prepare_config(self, cfg: Config) -> None:
        """Set, in place, defaults that the host's own tools set as well."""

    def picture_shape(self, backbone: dict) -> Tuple[int, int]:
        """Say for which pictures a backbone is made.

        Args:
            backbone (dict): Its config.

        Returns:
            Tuple[int, int]: Height and width in pixels.
        """
        return 224, 224

    def show(self, cfg: Config, folder: Optional[str]) -> None:
        """Let the visualization hook draw every picture of a test.

        Args:
            cfg (Config): With ``default_hooks.visualization``; changed in
                place.
            folder (str, optional): Absolute path of where the pictures go.
        """
        cfg.default_hooks.visualization.update(
            enable=True, out_dir=folder, interval=1)

    def tta(self, cfg: Config) -> None:
        """Wrap model and test pipeline as the config says, else flip and average.

        Args:
            cfg (Config): Changed in place; its ``tta_model`` and
                ``tta_pipeline`` come before the host's.

        Raises:
            UsageError: If neither the config nor the host has a ``tta_model``.
        """
        datasets = [dataset for _, dataset in datasets_within(
            cfg.test_dataloader.dataset)]
        if 'tta_model' not in cfg:
            if self.tta_model is None:
                raise UsageError(
                    f'model.type={type_name(cfg.model)!r} is of no host whose '
                    'predictions can be averaged: set tta_model in the config')
            cfg.tta_model = self.tta_model
        if 'tta_pipeline' not in cfg:
            cfg.tta_pipeline = self.tta_steps(datasets[0].pipeline)
        cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)
        for dataset in datasets:
            dataset.pipeline = cfg.tta_pipeline

    def tta_steps(self, pipeline: Sequence[dict]) -> List[dict]:
        """Make a pipeline that flips out of a test pipeline.

        Args:
            pipeline (Sequence[dict]): Its last step packs; not changed.

        Returns:
            List[dict]: Its last step is a TestTimeAug.
        """
        *steps, pack = deepcopy(list(pipeline))
        if self.tta_meta_keys:
            pack['meta_keys'] = self.tta_meta_keys
        # Its own, also where the config's default_scope is another or None.
        scope = '' if self.scope == Host.scope else f'{self.scope}.'
        flips = [dict(type=f'{scope}RandomFlip', prob=p) for p in (1., 0.)]
        return [*steps, dict(type='TestTimeAug', transforms=[flips, [pack]])]

    def dump_results(self, path: str) -> DumpResults:
        """Build the metric that writes predictions into a ``.pkl``."""
        return DumpResults(out_file_path=path)

    def preprocess(self, model: nn.Module, batch: dict) -> dict:
        """Bring a batch of an analysis into the form that a network takes.

        Args:
            model (nn.Module): Of this host.
            batch (dict): As its data loader returns it.

        Returns:
            dict: ``inputs`` and ``data_samples``.
        """
        return model.data_preprocessor(batch, False)

    def explain(self,
                model: nn.Module,
                data: dict,
                wanted: Optional[str] = None) -> Explained:
        """Choose what class activation maps explain: the class that is found.

        Args:
            model (nn.Module): In eval mode.
            data (dict): One picture, as the data_preprocessor returns it.
            wanted (str, optional): Name or number of the class to explain.
                Defaults to None: what the network finds.

        Returns:
            Explained: For grad-cam.

        Raises:
            UsageError: If the model does not answer with logits, or there is
                no such class, or nothing to explain.
        """
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
        with torch.no_grad():
            logits = Classifier(model)(data['inputs'])  # (1, classes)
        label = int(logits[0].argmax())
        if wanted is not None:
            label = label_of(model, wanted, logits.shape[1])
        return Explained(Classifier, ClassifierOutputTarget(label),
                         f'class {class_name(model, label)}')

    def default_part(self, model: nn.Module) -> str:
        """Say what of a model is exported, unless the user says otherwise.

        Args:
            model (nn.Module): Of this host.

        Returns:
            str: ``'backbone'``, or the key of ``exportable`` that it has.
        """
        return 'backbone'

    def export(self, model: nn.Module,
               scores: bool) -> Tuple[nn.Module, List[str]]:
        """Make a module of the model's part that is no backbone.

        Args:
            model (nn.Module): Whose :meth:`default_part` is exportable.
            scores (bool): Whether it ends with scores instead of logits.

        Returns:
            tuple: A module of normalised pictures (B, 3, H, W) in eval mode,
            and the names of its outputs.
        """
        raise NotImplementedError


class Classifier(nn.Module):
    """Pictures (B, 3, H, W) to logits (B, classes).

    Args:
        model (nn.Module): Returns logits in ``mode='tensor'``.
        scores (nn.Module, optional): Makes scores of logits, which are then
            returned instead.
    """

    def __init__(self,
                 model: nn.Module,
                 scores: Optional[nn.Module] = None) -> None:
        super().__init__()
        self.model = model
        self.scores = scores or nn.Identity()

    def forward(self, inputs: Tensor) -> Tensor:
        """Raise a UsageError if the model returns anything but a tensor."""
        logits = self.model(inputs, mode='tensor')
        if not isinstance(logits, Tensor):
            raise UsageError(
                f'{type(self.model).__name__} does not return logits in '
                "mode='tensor': expected a detector or an mmpretrain "
                'ImageClassifier')
        return self.scores(logits)


def label_of(model: nn.Module, wanted: str, number: int) -> int:
    """Find a class by its name or, where no class has that name, its number.

    Args:
        model (nn.Module): With the ``dataset_meta`` of its checkpoint.
        wanted (str): Such as ``'cat'`` or ``'3'``.
        number (int): Of classes that the model tells apart.

    Returns:
        int: From 0.

    Raises:
        UsageError: If there is no such class.
    """
    names = [class_name(model, label) for label in range(number)]
    if wanted in names:
        return names.index(wanted)
    if wanted.isdigit() and int(wanted) < number:
        return int(wanted)
    raise UsageError(f'no class {wanted!r}: expected one of '
                     f'{", ".join(names[:20])}{", ..." * (number > 20)}, or a '
                     f'number below {number}')


def class_name(model: nn.Module, label: int) -> str:
    """Name a class as its dataset does, else by its number."""
    classes = getattr(model, 'dataset_meta', {}).get('classes') or ()
    return str(classes[label]) if label < len(classes) else str(label)
