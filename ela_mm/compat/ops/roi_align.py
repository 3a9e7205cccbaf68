"""RoIAlign, by torchvision's kernels."""
from typing import Iterator, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .precision import computable


def sample_counts(rois: Tensor, spatial_scale: float, height: int, width: int,
                   sampling_ratio: int, aligned: bool) -> Tensor:
    """Return the samples per bin of every RoI, (K, 2): rows and columns."""
    if sampling_ratio > 0:
        return torch.full((len(rois), 2), sampling_ratio, device=rois.device)
    size = (rois[:, [4, 3]] - rois[:, [2, 1]]) * spatial_scale  # (K, 2) h, w
    if not aligned:
        size = size.clamp(min=1.)
    counts = torch.ceil(size / size.new_tensor([height, width])).long()
    return counts.clamp(min=0)


def by_sample_count(counts: Tensor) -> Iterator[Tuple[Tensor, int, int]]:
    """Yield groups of RoIs with equal sample counts: (indices, rows, columns).

    A RoI without extent has no samples and is in no group.
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
    """Run RoIAlign (He et al., ICCV 2017), into ``output``.

    ``pool_mode`` 1 averages the samples of a bin, as torchvision's RoIAlign.
    0 takes their maximum: RoIAlign on a finer grid, with one sample per bin,
    returns the samples, which are then max-pooled.

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
        pool_mode (int): 0 for maximum, 1 for average.
        aligned (bool): Whether to shift by half a pixel, as Detectron2 does.
    """
    features, boxes = computable(input), computable(rois).to(
        computable(input).dtype)
    if pool_mode == 1:
        output.copy_(
            torch.ops.torchvision.roi_align(features, boxes, spatial_scale,
                                            aligned_height, aligned_width,
                                            sampling_ratio, aligned))
        return
    counts = sample_counts(boxes, spatial_scale, aligned_height,
                            aligned_width, sampling_ratio, aligned)
    output.fill_(-10000.)  # mmcv's value for bins without samples
    for members, rows, columns in by_sample_count(counts):
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
    """Compute the gradient of :func:`roi_align_forward`, into ``grad_input``.

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
    grad = computable(grad_output)
    boxes = computable(rois).to(grad.dtype)
    shape = grad_input.shape
    if pool_mode == 1:
        grad_input.copy_(
            torch.ops.torchvision._roi_align_backward(
                grad, boxes, spatial_scale, aligned_height, aligned_width,
                *shape, sampling_ratio, aligned))
        return
    counts = sample_counts(boxes, spatial_scale, aligned_height,
                            aligned_width, sampling_ratio, aligned)
    for members, rows, columns in by_sample_count(counts):
        fine = F.max_unpool2d(grad[members], argmax_y[members].long(),
                              (rows, columns))
        grad_input += torch.ops.torchvision._roi_align_backward(
            fine, boxes[members], spatial_scale, aligned_height * rows,
            aligned_width * columns, *shape, 1, aligned).to(grad_input.dtype)
