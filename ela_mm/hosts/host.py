"""The base class of hosts, which also serves models of no host."""
from copy import deepcopy
from typing import Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

import torch
from mmengine.config import Config, ConfigDict
from mmengine.evaluator import DumpResults
from torch import Tensor, nn

from ..config_types import datasets_within, type_name
from ..errors import UsageError


class Explained(NamedTuple):
    """What Score-CAM explains in an image, and how it is scored.

    Attributes:
        answer (Callable): Function from a network to a module that maps images
            (B, 3, H, W) to one answer each. The network may differ from the
            one that was analysed, for example have all layers active.
        target (Callable): Function from an answer to its score, a scalar
            tensor.
        label (str): What is explained, in words.
    """
    answer: Callable[[nn.Module], nn.Module]
    target: Callable[..., Tensor]
    label: str


class Host:
    """Everything that differs between hosts; each host has a subclass.

    The class itself serves models that belong to no host and are registered
    with mmengine. It treats them as classifiers, as far as possible.

    Attributes:
        scope (str): Scope of the host's registries, and name of its package.
        main_metrics (Tuple[str, ...]): Names of main metrics; the first that a
            run has is shown.
        exportable (Dict[str, str]): Parts besides the backbone that can be
            exported to ONNX, with the models that have them, such as
            ``{'classifier': 'an mmpretrain ImageClassifier'}``.
        deep_stem (Tuple[str, ...]): Names of the modules in the stem of three
            convolutions: each convolution, followed by its norm.
        tta_model (dict, optional): Config of the model that averages over
            flips, for configs without a ``tta_model``.
        tta_meta_keys (Tuple[str, ...]): Meta keys that it needs from the last
            step of the test pipeline; empty: those of the config.
    """

    scope = 'mmengine'
    main_metrics: Tuple[str, ...] = ()
    exportable: Dict[str, str] = {}
    deep_stem: Tuple[str, ...] = ()
    tta_model: Optional[dict] = None
    tta_meta_keys: Tuple[str, ...] = ()

    def prepare_config(self, cfg: Config) -> None:
        """Set defaults that the host's own tools set as well, in place."""

    def picture_shape(self, backbone: dict) -> Tuple[int, int]:
        """Return the usual size of images for a backbone.

        Args:
            backbone (dict): Config of the backbone.

        Returns:
            Tuple[int, int]: Height and width in pixels.
        """
        return 224, 224

    def show(self, cfg: Config, folder: Optional[str]) -> None:
        """Make the visualization hook draw every image of a test.

        Args:
            cfg (Config): Config with ``default_hooks.visualization``, changed
                in place.
            folder (str, optional): Absolute path of the folder for pictures.
        """
        cfg.default_hooks.visualization.update(
            enable=True, out_dir=folder, interval=1)

    def tta(self, cfg: Config) -> None:
        """Set up test-time augmentation: by default, flip and average.

        Args:
            cfg (Config): Config, changed in place. Its own ``tta_model`` and
                ``tta_pipeline`` take precedence over the host's.

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
        """Make a pipeline with flips from a test pipeline.

        Args:
            pipeline (Sequence[dict]): Test pipeline, whose last step packs; not
                changed.

        Returns:
            List[dict]: Pipeline whose last step is a TestTimeAug.
        """
        *steps, pack = deepcopy(list(pipeline))
        if self.tta_meta_keys:
            pack['meta_keys'] = self.tta_meta_keys
        # Explicit, since the default_scope of the config may be another.
        scope = '' if self.scope == Host.scope else f'{self.scope}.'
        flips = [dict(type=f'{scope}RandomFlip', prob=p) for p in (1., 0.)]
        return [*steps, dict(type='TestTimeAug', transforms=[flips, [pack]])]

    def dump_results(self, path: str) -> DumpResults:
        """Build the metric that writes predictions to a ``.pkl`` file."""
        return DumpResults(out_file_path=path)

    def preprocess(self, model: nn.Module, batch: dict) -> dict:
        """Preprocess a batch as the network needs it.

        Args:
            model (nn.Module): Model of this host.
            batch (dict): Batch as its data loader returns it.

        Returns:
            dict: ``inputs`` and ``data_samples``.
        """
        return model.data_preprocessor(batch, False)

    def explain(self,
                model: nn.Module,
                data: dict,
                wanted: Optional[str] = None) -> Explained:
        """Choose what class activation maps explain: the predicted class.

        Args:
            model (nn.Module): Model in eval mode.
            data (dict): One image, as the data_preprocessor returns it.
            wanted (str, optional): Name or number of the class to explain.
                Defaults to None: what the network finds.

        Returns:
            Explained: What grad-cam explains.

        Raises:
            UsageError: If the model does not return logits, or if there is no
                such class or nothing to explain.
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
        """Return the part of a model that is exported by default.

        Args:
            model (nn.Module): Model of this host.

        Returns:
            str: A key of ``exportable``, or ``'backbone'``.
        """
        return 'backbone'

    def export(self, model: nn.Module,
               scores: bool) -> Tuple[nn.Module, List[str]]:
        """Make a module that can be exported from an exportable part.

        Args:
            model (nn.Module): Model whose :meth:`default_part` is exportable.
            scores (bool): Whether it returns scores instead of logits.

        Returns:
            tuple: A module in eval mode that takes normalised images
            (B, 3, H, W), and the names of its outputs.
        """
        raise NotImplementedError


class Classifier(nn.Module):
    """Maps images (B, 3, H, W) to logits (B, classes), or to scores.

    Args:
        model (nn.Module): Model that returns logits in ``mode='tensor'``.
        scores (nn.Module, optional): Module that turns logits into scores.
            Defaults to None: logits are returned.
    """

    def __init__(self,
                 model: nn.Module,
                 scores: Optional[nn.Module] = None) -> None:
        super().__init__()
        self.model = model
        self.scores = scores or nn.Identity()

    def forward(self, inputs: Tensor) -> Tensor:
        """Run the model; raise a UsageError if it returns no tensor."""
        logits = self.model(inputs, mode='tensor')
        if not isinstance(logits, Tensor):
            raise UsageError(
                f'{type(self.model).__name__} does not return logits in '
                "mode='tensor': expected a detector or an mmpretrain "
                'ImageClassifier')
        return self.scores(logits)


def label_of(model: nn.Module, wanted: str, number: int) -> int:
    """Find a class by its name, or if no class is called that, by its number.

    Args:
        model (nn.Module): Model with the ``dataset_meta`` of its checkpoint.
        wanted (str): Name or number, such as ``'cat'`` or ``'3'``.
        number (int): Number of classes of the model.

    Returns:
        int: Index of the class, from 0.

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
    """Return the name of a class in its dataset, or its number."""
    classes = getattr(model, 'dataset_meta', {}).get('classes') or ()
    return str(classes[label]) if label < len(classes) else str(label)
