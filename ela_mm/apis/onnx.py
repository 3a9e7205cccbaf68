"""Exports networks and their parts as ONNX graphs, which are verified first."""
import importlib.util
from typing import Dict, List, Optional, Tuple

import torch
from mmengine.utils import digit_version
from torch import Tensor, nn

from ..errors import UsageError
from ..hosts.registration import host_of_model, installed
from ..models.backbones.layer_attention_mixin import ela_backbones
from ..models.backbones.pictures import picture_channels
from .deploy import whole_file

# Largest allowed difference from PyTorch's result, absolute and relative.
PARITY = 1e-4
ONNX_PACKAGES = ('onnx', 'onnxruntime', 'onnxscript')


def check_onnx() -> None:
    """Raise a UsageError unless ONNX files can be written and verified."""
    missing = [n for n in ONNX_PACKAGES if importlib.util.find_spec(n) is None]
    if missing:
        raise UsageError(f'ONNX export needs {", ".join(missing)}: pip install '
                         f'{" ".join(missing)}')
    if digit_version(torch.__version__) < digit_version('2.6'):
        raise UsageError('ONNX export needs torch >= 2.6, this is '
                         f'{torch.__version__}')


def parts() -> Dict[str, str]:
    """List the parts that can be exported, and the models that have them."""
    known = {'backbone': 'a network with an ELA backbone'}
    for host in installed():
        known.update(host.exportable)
    return known


def part_of(model: nn.Module,
            part: Optional[str] = None,
            scores: bool = False) -> Tuple[nn.Module, List[str]]:
    """Make a module of the part of a model that is to be exported.

    Args:
        model (nn.Module): Model from :func:`~ela_mm.apis.loading.load_model`.
        part (str, optional): Part to export, a key of :func:`parts`:
            ``'backbone'``, ``'classifier'`` for mmpretrain's
            ``ImageClassifier``, or ``'segmentor'`` for mmseg's
            ``EncoderDecoder``. Defaults to the classifier or segmentor if the
            model is one, otherwise to the backbone.
        scores (bool): Whether a classifier or segmentor returns scores instead
            of logits. Defaults to False.

    Returns:
        tuple: A module that takes normalised images (B, C, H, W), and the names
        of its outputs: ``feature_<stage>`` for each of ``out_indices``, counted
        from 1; or ``logits`` or ``scores``, (B, classes) for a classifier and
        (B, classes, H, W) for a segmentor.

    Raises:
        UsageError: If there is no such part, or if the model does not have it.
    """
    host = host_of_model(model)
    default = host.default_part(model)
    part = part or default
    if part not in parts():
        raise UsageError(f'part {part!r}: expected one of {list(parts())}')
    if part not in ('backbone', default):
        raise UsageError(
            f'part {part!r} of a {type(model).__name__}: expected the config '
            f"of {parts()[part]}; take part 'backbone'")
    if part != 'backbone':
        return host.export(model, scores)
    if scores:
        others = ' or '.join(repr(x) for x in parts() if x != 'backbone')
        raise UsageError(f'scores need part {others}; a backbone has none')
    backbones = ela_backbones(model)
    if len(backbones) > 1:
        raise UsageError(f'the model has {len(backbones)} ELA backbones '
                         f'({", ".join(backbones)}): expected one to export')
    (backbone, ) = backbones.values()
    return backbone, [f'feature_{i + 1}' for i in backbone.out_indices]


def channel_order(preprocessor: nn.Module) -> str:
    """Return the order in which a network takes the channels of an image.

    Args:
        preprocessor (nn.Module): The model's ``data_preprocessor``.

    Returns:
        str: ``'RGB'`` if the preprocessor reverses the order, otherwise
        ``'BGR'``, the order in which OpenMMLab's pipelines load images.
    """
    # Names of the option in ClsDataPreprocessor and in mmengine.
    turns = any(getattr(preprocessor, name, False)
                for name in ('to_rgb', '_channel_conversion'))
    return 'RGB' if turns else 'BGR'


@torch.no_grad()
def export_onnx(module: nn.Module,
                outputs: List[str],
                target: str,
                shape: Tuple[int, int] = (224, 224),
                opset: int = 18,
                dynamic: bool = False) -> float:
    """Export a module as ONNX, for any batch size, and verify it.

    Args:
        module (nn.Module): Module from :func:`part_of`, float32 on the CPU. Its
            first convolution determines the channels of images.
        outputs (List[str]): Names of its outputs. The input is called
            ``images``.
        target (str): Path to write to. The file is only written if the graph
            passes onnx's checker and onnxruntime agrees with PyTorch.
        shape (Tuple[int, int]): Height and width of the images. Defaults to
            (224, 224).
        opset (int): Version of ONNX's operators. Defaults to 18.
        dynamic (bool): Whether height and width may vary; the graph is then
            verified at three sizes, beginning with ``shape``. Defaults to
            False.

    Returns:
        float: Largest absolute difference from PyTorch's result.

    Raises:
        UsageError: If packages are missing, if the module cannot be exported
            (because of an operator such as deformable convolution), if the
            exporter does not support the opset, or if results differ by more
            than ``PARITY``.
    """
    check_onnx()
    import onnx
    if min(shape) < 1:
        raise UsageError(f'shape {tuple(shape)}: expected a positive height '
                         'and width')
    known = onnx.defs.onnx_opset_version()
    if not 18 <= opset <= known:
        raise UsageError(f'opset {opset}: expected 18 to {known}')
    images = torch.randn(2, picture_channels(module), *shape)
    open_axes = {0: 'batch', 2: 'height', 3: 'width'} if dynamic else {
        0: 'batch'}
    with whole_file(target) as file:
        try:
            torch.onnx.export(
                module, (images, ),
                file,
                input_names=['images'],
                output_names=outputs,
                opset_version=opset,
                dynamo=True,
                dynamic_shapes=({
                    axis: torch.export.Dim(name)
                    for axis, name in open_axes.items()
                }, ),
                external_data=False,
                verbose=False)
        except torch.onnx.OnnxExporterError as error:
            cause = error.__cause__ or error
            raise UsageError(
                f'{type(module).__name__} cannot be exported' +
                (' with open height and width: ' if dynamic else ': ') +
                f'{str(cause).strip().splitlines()[0]}') from error
        _tidy(file, opset)
        _check_open(module, file, open_axes)
        # Another aspect ratio, and sides that no stride divides.
        height, width = shape
        others = [(width + 32, height), (height + 1, width + 3)]
        sizes = [shape, *others] if dynamic else [shape]
        return max(_difference(module, file, batch, size)
                   for size in sizes for batch in (1, 3))


def _tidy(file: str, opset: int) -> None:
    """Check a graph, and remove the exporter's metadata on source files."""
    import onnx
    model = onnx.load(file)
    (version, ) = [x.version for x in model.opset_import if not x.domain]
    if version != opset:
        raise UsageError(f'opset {opset}: the exporter can write '
                         f'{version} only')
    graph = model.graph
    for noted in (model, graph, *graph.node, *graph.value_info, *graph.input,
                  *graph.output, *graph.initializer):
        del noted.metadata_props[:]
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, file)


def _check_open(module: nn.Module, file: str, axes: Dict[int, str]) -> None:
    """Raise a UsageError unless the graph takes any size of these axes.

    Args:
        module (nn.Module): Exported module, for the error.
        file (str): Path of the graph.
        axes (Dict[int, str]): Names of the axes, by index.
    """
    import onnx
    sides = onnx.load(file).graph.input[0].type.tensor_type.shape.dim
    for axis, name in axes.items():
        if not sides[axis].dim_param:
            raise UsageError(
                f'{type(module).__name__} cannot be exported with an open '
                f'{name}: it takes {sides[axis].dim_value} alone'
                + (', leave out --dynamic' if axis > 1 else ''))


def _difference(module: nn.Module, file: str, batch: int,
                shape: Tuple[int, int]) -> float:
    """Compute the largest difference of onnxruntime from PyTorch, on noise."""
    import onnxruntime
    session = onnxruntime.InferenceSession(
        file, providers=['CPUExecutionProvider'])
    images = torch.randn(batch, picture_channels(module), *shape)
    expected = module(images)
    if isinstance(expected, Tensor):
        expected = (expected, )
    results = session.run(None, dict(images=images.numpy()))
    largest = 0.
    for result, reference in zip(results, expected):
        result = torch.from_numpy(result)
        difference = (result - reference).abs().max().item()
        if not torch.allclose(result, reference, rtol=PARITY, atol=PARITY):
            raise UsageError(  # here, since max() would drop NaN
                f'onnxruntime differs from PyTorch by {difference:.2g}, more '
                f'than {PARITY:g}: the graph is not written; are the weights '
                'of the checkpoint finite?')
        largest = max(largest, difference)
    return largest
