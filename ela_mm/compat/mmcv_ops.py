"""Offers ``mmcv._ext`` backed by torchvision, so that mmcv-lite is enough.

The compiled ``mmcv`` has no wheels for current torch, and building it takes
the better part of an hour. Common detectors need few of its ops: NMS,
soft-NMS, RoIAlign and, on a GPU, the sigmoid focal loss; PISA's sampler needs
NMS with groups. A finder at the *end*
of ``sys.meta_path`` offers them under the extension's name: where a compiled
mmcv is installed, the ordinary finders come first and it wins. Ops beyond
these raise NotImplementedError when called.

The argument names and the in-place outputs are those of mmcv 2.x's extension,
because ``mmcv.ops`` calls it by keyword.
"""
import importlib.abc
import importlib.machinery
import sys
from types import ModuleType
from typing import Any, Callable, Iterator, List, Optional, Tuple

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor

_NAME = 'mmcv._ext'


def _computable(x: Tensor) -> Tensor:
    """torchvision's CPU kernels know float32 and float64 only."""
    if x.is_cuda or x.dtype in (torch.float32, torch.float64):
        return x
    return x.float()


# --- NMS ---------------------------------------------------------------------


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float,
        offset: int) -> Tensor:
    """Indices of the boxes that hard NMS keeps, by falling score.

    Args:
        boxes (Tensor): (N, 4), x1 y1 x2 y2.
        scores (Tensor): (N, ).
        iou_threshold (float): Boxes that overlap a better one by more go.
        offset (int): 0, or 1 where a box's width is x2 - x1 + 1.

    Returns:
        Tensor: (K, ) int64.
    """
    boxes = _computable(boxes)
    if offset:
        boxes = boxes + boxes.new_tensor([0, 0, offset, offset])
    return torch.ops.torchvision.nms(boxes, scores.to(boxes.dtype),
                                     iou_threshold)


def softnms(boxes: Tensor, scores: Tensor, dets: Tensor, iou_threshold: float,
            sigma: float, min_score: float, method: int,
            offset: int) -> Tensor:
    """Soft-NMS (Bodla et al., ICCV 2017); torchvision has none.

    Args:
        boxes (Tensor): (N, 4) on the CPU.
        scores (Tensor): (N, ) on the CPU.
        dets (Tensor): (N, 5), output: box and decayed score of the kept.
        iou_threshold (float): For methods 0 and 1.
        sigma (float): Width of the gaussian of method 2.
        min_score (float): Boxes whose score decays below it are dropped.
        method (int): 0 naive (hard), 1 linear, 2 gaussian.
        offset (int): As in :func:`nms`.

    Returns:
        Tensor: (K, ) int64, the kept boxes; rows ``dets[:K]`` belong to them.
    """
    x1, y1, x2, y2 = _computable(boxes).unbind(1)
    scores = _computable(scores).clone()
    areas = (x2 - x1 + offset) * (y2 - y1 + offset)
    remaining = torch.arange(len(scores))
    keep = []
    while len(remaining):
        best = int(scores[remaining].argmax())
        i = remaining[best]
        keep.append(i)
        remaining = torch.cat([remaining[:best], remaining[best + 1:]])
        width = torch.min(x2[i], x2[remaining]) - torch.max(
            x1[i], x1[remaining]) + offset
        height = torch.min(y2[i], y2[remaining]) - torch.max(
            y1[i], y1[remaining]) + offset
        inter = width.clamp(min=0) * height.clamp(min=0)
        iou = inter / (areas[i] + areas[remaining] - inter)
        if method == 2:
            weight = torch.exp(-iou * iou / sigma)
        else:
            decayed = 1 - iou if method == 1 else torch.zeros_like(iou)
            weight = torch.where(iou >= iou_threshold, decayed,
                                 torch.ones_like(iou))
        scores[remaining] *= weight
        remaining = remaining[scores[remaining] >= min_score]
    keep = torch.stack(keep) if keep else remaining
    dets[:len(keep), :4] = boxes[keep]
    dets[:len(keep), 4] = scores[keep]
    return keep


def nms_match(dets: Tensor, iou_threshold: float) -> List[List[int]]:
    """The boxes that hard NMS keeps, each with those that go for it.

    Args:
        dets (Tensor): (N, 5) on the CPU, x1 y1 x2 y2 score.
        iou_threshold (float): Boxes that overlap a better one by as much or
            more join its group.

    Returns:
        List[List[int]]: Groups and their boxes, both by falling score.
    """
    boxes, scores = _computable(dets).split([4, 1], 1)
    remaining = scores.squeeze(1).argsort(descending=True)
    groups = []
    while len(remaining):
        overlaps = torchvision.ops.box_iou(
            boxes[remaining[:1]], boxes[remaining])[0]
        joins = overlaps >= iou_threshold
        joins[0] = True  # a box of no extent does not overlap itself
        groups.append(remaining[joins].tolist())
        remaining = remaining[~joins]
    return groups


# --- RoIAlign ----------------------------------------------------------------


def _sample_counts(rois: Tensor, spatial_scale: float, height: int, width: int,
                   sampling_ratio: int, aligned: bool) -> Tensor:
    """Samples per bin and axis of every RoI, (K, 2) as (rows, columns)."""
    if sampling_ratio > 0:
        return torch.full((len(rois), 2), sampling_ratio, device=rois.device)
    size = (rois[:, [4, 3]] - rois[:, [2, 1]]) * spatial_scale  # (K, 2) h, w
    if not aligned:
        size = size.clamp(min=1.)
    counts = torch.ceil(size / size.new_tensor([height, width])).long()
    return counts.clamp(min=0)


def _by_sample_count(counts: Tensor) -> Iterator[Tuple[Tensor, int, int]]:
    """Groups RoIs of equal sample counts: (indices, rows, columns).

    A RoI of no extent has no samples and belongs to no group.
    """
    sampled = counts[(counts > 0).all(1)]
    for rows, columns in torch.unique(sampled, dim=0).tolist():
        members = (counts == counts.new_tensor([rows, columns])).all(1)
        yield members.nonzero().squeeze(1), rows, columns


def roi_align_forward(input: Tensor, rois: Tensor, output: Tensor,
                      argmax_y: Tensor, argmax_x: Tensor, aligned_height: int,
                      aligned_width: int, spatial_scale: float,
                      sampling_ratio: int, pool_mode: int,
                      aligned: bool) -> None:
    """RoIAlign (He et al., ICCV 2017) into ``output``.

    ``pool_mode`` 1 averages the samples of a bin, which is torchvision's
    RoIAlign. 0 takes their maximum: a grid as fine as the samples, one sample
    each, gives the samples themselves, and max-pooling does the rest.

    Args:
        input (Tensor): (B, C, H, W).
        rois (Tensor): (K, 5), batch index and x1 y1 x2 y2 in image pixels.
        output (Tensor): (K, C, aligned_height, aligned_width), written.
        argmax_y (Tensor): Same shape with ``pool_mode=0``, written: position
            of the maximum within the RoI's fine grid, for the backward.
        argmax_x (Tensor): Not used here; mmcv's signature has it.
        aligned_height (int): Bins per RoI, vertically.
        aligned_width (int): Bins per RoI, horizontally.
        spatial_scale (float): Feature pixels per image pixel.
        sampling_ratio (int): Samples per bin and axis; 0 adapts to the RoI.
        pool_mode (int): 0 max, 1 average.
        aligned (bool): Shift by half a pixel, as Detectron2 does.
    """
    features, boxes = _computable(input), _computable(rois).to(
        _computable(input).dtype)
    if pool_mode == 1:
        output.copy_(
            torch.ops.torchvision.roi_align(features, boxes, spatial_scale,
                                            aligned_height, aligned_width,
                                            sampling_ratio, aligned))
        return
    counts = _sample_counts(boxes, spatial_scale, aligned_height,
                            aligned_width, sampling_ratio, aligned)
    output.fill_(-10000.)  # mmcv's value for the maximum of no sample
    for members, rows, columns in _by_sample_count(counts):
        samples = torch.ops.torchvision.roi_align(
            features, boxes[members], spatial_scale, aligned_height * rows,
            aligned_width * columns, 1, aligned)
        maxima, positions = F.max_pool2d(
            samples, (rows, columns), return_indices=True)
        output[members] = maxima.to(output.dtype)
        argmax_y[members] = positions.to(argmax_y.dtype)


def roi_align_backward(grad_output: Tensor, rois: Tensor, argmax_y: Tensor,
                       argmax_x: Tensor, grad_input: Tensor,
                       aligned_height: int, aligned_width: int,
                       spatial_scale: float, sampling_ratio: int,
                       pool_mode: int, aligned: bool) -> None:
    """Gradient of :func:`roi_align_forward`, into ``grad_input``.

    Args:
        grad_output (Tensor): (K, C, aligned_height, aligned_width).
        rois (Tensor): As in the forward.
        argmax_y (Tensor): As the forward wrote it.
        argmax_x (Tensor): Not used.
        grad_input (Tensor): (B, C, H, W), written.
        aligned_height (int): As in the forward.
        aligned_width (int): As in the forward.
        spatial_scale (float): As in the forward.
        sampling_ratio (int): As in the forward.
        pool_mode (int): As in the forward.
        aligned (bool): As in the forward.
    """
    grad = _computable(grad_output)
    boxes = _computable(rois).to(grad.dtype)
    shape = grad_input.shape
    if pool_mode == 1:
        grad_input.copy_(
            torch.ops.torchvision._roi_align_backward(
                grad, boxes, spatial_scale, aligned_height, aligned_width,
                *shape, sampling_ratio, aligned))
        return
    counts = _sample_counts(boxes, spatial_scale, aligned_height,
                            aligned_width, sampling_ratio, aligned)
    for members, rows, columns in _by_sample_count(counts):
        fine = F.max_unpool2d(grad[members], argmax_y[members].long(),
                              (rows, columns))
        grad_input += torch.ops.torchvision._roi_align_backward(
            fine, boxes[members], spatial_scale, aligned_height * rows,
            aligned_width * columns, *shape, 1, aligned).to(grad_input.dtype)


# --- focal loss --------------------------------------------------------------


def _focal_loss(input: Tensor, target: Tensor, weight: Tensor, gamma: float,
                alpha: float) -> Tensor:
    classes = torch.arange(input.size(1), device=input.device)
    one_hot = (target[:, None] == classes).to(input.dtype)  # (N, C)
    loss = torchvision.ops.sigmoid_focal_loss(input, one_hot, alpha, gamma)
    if weight.numel():
        # Background, class C, has no weight of its own and counts in full.
        padded = torch.cat([weight, weight.new_ones(1)])
        loss = loss * padded[target.clamp(max=len(weight))][:, None]
    return loss


def sigmoid_focal_loss_forward(input: Tensor, target: Tensor, weight: Tensor,
                               output: Tensor, gamma: float,
                               alpha: float) -> None:
    """Focal loss (Lin et al., ICCV 2017) of every class, into ``output``.

    Args:
        input (Tensor): (N, C) logits.
        target (Tensor): (N, ) int64 classes; C is background.
        weight (Tensor): (C, ) weights of the classes, or empty.
        output (Tensor): (N, C), written.
        gamma (float): Focusing exponent.
        alpha (float): Share of the positive term, of 1.
    """
    output.copy_(
        _focal_loss(_computable(input), target, weight, gamma, alpha))


def sigmoid_focal_loss_backward(input: Tensor, target: Tensor, weight: Tensor,
                                grad_input: Tensor, gamma: float,
                                alpha: float) -> None:
    """Derivative of every loss to its logit, into ``grad_input``.

    Args:
        input (Tensor): As in the forward.
        target (Tensor): As in the forward.
        weight (Tensor): As in the forward.
        grad_input (Tensor): (N, C), written.
        gamma (float): As in the forward.
        alpha (float): As in the forward.
    """
    with torch.enable_grad():
        logits = _computable(input).detach().requires_grad_()
        loss = _focal_loss(logits, target, weight, gamma, alpha)
        # Each loss depends on its own logit alone.
        grad_input.copy_(torch.autograd.grad(loss.sum(), logits)[0])


# --- the module --------------------------------------------------------------


def get_compiler_version() -> str:
    """For mmcv's environment report."""
    return 'none (ops from torchvision)'


def get_compiling_cuda_version() -> str:
    """For mmcv's environment report."""
    return 'none (ops from torchvision)'


_OPS = (nms, softnms, nms_match, roi_align_forward, roi_align_backward,
        sigmoid_focal_loss_forward, sigmoid_focal_loss_backward,
        get_compiler_version, get_compiling_cuda_version)


def _missing(op: str) -> Callable:

    def raise_missing(*args: Any, **kwargs: Any) -> None:
        raise NotImplementedError(
            f'mmcv op {op!r} needs the compiled mmcv: mmcv-lite has no ops '
            'and ela_mm adds NMS, soft-NMS, NMS with groups, RoIAlign and '
            'sigmoid focal loss only. Install the full package ("pip uninstall '
            'mmcv-lite", then "mim install \'mmcv>=2.0,<2.2\'"), or leave out '
            'what uses this op')

    raise_missing.__name__ = op
    return raise_missing


class _ExtFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds ``mmcv._ext`` where nothing else does."""

    def find_spec(self,
                  fullname: str,
                  path: Any = None,
                  target: Any = None) -> Optional[Any]:
        if fullname != _NAME:
            return None
        return importlib.machinery.ModuleSpec(fullname, self)

    def create_module(self, spec: Any) -> ModuleType:
        module = ModuleType(spec.name, __doc__)

        def __getattr__(name: str) -> Callable:
            if name.startswith('__'):
                raise AttributeError(name)
            return _missing(name)

        module.__getattr__ = __getattr__
        return module

    def exec_module(self, module: ModuleType) -> None:
        for op in _OPS:
            setattr(module, op.__name__, op)


def install() -> None:
    """Append the finder to ``sys.meta_path``, once and in the last place."""
    if not any(isinstance(finder, _ExtFinder) for finder in sys.meta_path):
        sys.meta_path.append(_ExtFinder())
