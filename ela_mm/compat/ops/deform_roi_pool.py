"""Deformable RoIPool (Dai et al., ICCV 2017), by torchvision's RoIAlign.

Every bin becomes a region of its own, shifted by its offset. RoIAlign is given
a bin for each sample, with one sample per bin, and so returns the samples.
"""
from typing import Iterator, NamedTuple, Tuple

import torch
from torch import Tensor

from .precision import computable
from .roi_align import by_sample_count, sample_counts

# Number of elements that are gathered at once; about 64 MB in float32.
_AT_ONCE = 1 << 24


class _Bins(NamedTuple):
    """Bins of those regions that have equally many samples.

    Attributes:
        members (Tensor): (k, ), indices of the regions.
        boxes (Tensor): (k * bins, 5), batch index and x1 y1 x2 y2 in feature
            pixels, plus the half pixel that RoIAlign subtracts.
        rows (int): Vertical samples per bin.
        columns (int): Horizontal samples per bin.
    """
    members: Tensor
    boxes: Tensor
    rows: int
    columns: int


def _bins(rois: Tensor, offset: Tensor, height: int, width: int,
          spatial_scale: float, sampling_ratio: int,
          gamma: float) -> Iterator[_Bins]:
    """Yield the bins of all regions, grouped by number of samples."""
    corner = rois[:, 1:3] * spatial_scale  # (K, 2), x before y
    size = rois[:, 3:] * spatial_scale - corner
    bins = torch.tensor([width, height], dtype=rois.dtype, device=rois.device)
    places = torch.stack(torch.meshgrid(
        torch.arange(width, device=rois.device),
        torch.arange(height, device=rois.device), indexing='xy'), -1)
    start = corner[:, None, None] + places * (size / bins)[:, None, None]
    if offset.numel():  # (K, 2, bins vertically, bins horizontally)
        start = start + gamma * size[:, None, None] * offset.permute(
            0, 2, 3, 1)
    batch = rois[:, :1, None, None].expand(-1, height, width, 1)
    boxes = torch.cat(
        [batch, start, start + (size / bins)[:, None, None]], -1)
    counts = sample_counts(rois, spatial_scale, height, width,
                            sampling_ratio, True)
    for members, rows, columns in by_sample_count(counts):
        yield _Bins(members, boxes[members].view(-1, 5), rows, columns)


def _samples(features: Tensor, batch: Tensor, x: Tensor,
             y: Tensor) -> Tensor:
    """Sample bilinearly at x, y (N, S) as RoIAlign does, to (N, S, C).

    Plain operations are used, so that x and y get gradients.
    """
    height, width = features.shape[2:]
    inside = (x >= -1) & (x <= width) & (y >= -1) & (y <= height)
    x, y = x.clamp(0, width - 1), y.clamp(0, height - 1)
    left, top = x.detach().long(), y.detach().long()
    right = (left + 1).clamp(max=width - 1)
    bottom = (top + 1).clamp(max=height - 1)
    to_right, down = (x - left)[..., None], (y - top)[..., None]
    pixels = features.permute(0, 2, 3, 1)
    batch = batch[:, None]

    def row(place: Tensor) -> Tensor:
        return torch.lerp(pixels[batch, place, left],
                          pixels[batch, place, right], to_right)

    return torch.lerp(row(top), row(bottom), down) * inside[..., None]


def _shift_gradients(grad: Tensor, features: Tensor,
                     group: _Bins) -> Tuple[Tensor, Tensor]:
    """Compute the gradients (bins, ) of each bin's shift in x and in y."""
    at_once = max(1, _AT_ONCE // (
        4 * features.size(1) * group.rows * group.columns))
    found = []
    for boxes, some in zip(group.boxes.split(at_once), grad.split(at_once)):
        with torch.enable_grad():
            shift = boxes.new_zeros(len(boxes), 2, 1).requires_grad_()
            size = boxes[:, 3:] - boxes[:, 1:3]
            steps = [(torch.arange(n, device=boxes.device) + .5) / n
                     for n in (group.columns, group.rows)]
            across, down = torch.meshgrid(*steps, indexing='xy')
            x, y = (boxes[:, 1 + i, None] - .5 + shift[:, i] +
                    size[:, i, None] * step.reshape(1, -1)
                    for i, step in enumerate((across, down)))
            pooled = _samples(features, boxes[:, 0].long(), x, y).mean(1)
            found.append(torch.autograd.grad(pooled, shift, some)[0])
    return torch.cat(found).squeeze(2).unbind(1)


def deform_roi_pool_forward(input: Tensor, rois: Tensor, offset: Tensor,
                            output: Tensor, pooled_height: int,
                            pooled_width: int, spatial_scale: float,
                            sampling_ratio: int, gamma: float) -> None:
    """Average the samples of every shifted bin, into ``output``.

    Args:
        input (Tensor): (B, C, H, W).
        rois (Tensor): (K, 5), batch index and x1 y1 x2 y2 in image pixels.
        offset (Tensor): (K, 2, pooled_height, pooled_width), x before y, in
            regions' sizes times ``gamma``; empty for none.
        output (Tensor): (K, C, pooled_height, pooled_width), written.
        pooled_height (int): Bins per region, vertically.
        pooled_width (int): Bins per region, horizontally.
        spatial_scale (float): Feature pixels per image pixel.
        sampling_ratio (int): Samples per bin and axis; 0 adapts to the region.
        gamma (float): Factor of the offsets.
    """
    features = computable(input)
    output.zero_()  # stays 0 for regions without extent
    for group in _bins(rois.to(features.dtype), offset.to(features.dtype),
                       pooled_height, pooled_width, spatial_scale,
                       sampling_ratio, gamma):
        pooled = torch.ops.torchvision.roi_align(
            features, group.boxes, 1., group.rows, group.columns, 1,
            True).mean((2, 3))
        output[group.members] = pooled.view(
            -1, pooled_height, pooled_width,
            features.size(1)).permute(0, 3, 1, 2).to(output.dtype)


def deform_roi_pool_backward(grad_output: Tensor, input: Tensor, rois: Tensor,
                             offset: Tensor, grad_input: Tensor,
                             grad_offset: Tensor, pooled_height: int,
                             pooled_width: int, spatial_scale: float,
                             sampling_ratio: int, gamma: float) -> None:
    """Compute the gradients of :func:`deform_roi_pool_forward`.

    Gradients of the offsets are exact derivatives of the forward; mmcv's kernel
    differs from them at samples beyond the centers of the outermost pixels.

    Args:
        grad_output (Tensor): (K, C, pooled_height, pooled_width).
        input (Tensor): As in the forward.
        rois (Tensor): As in the forward.
        offset (Tensor): As in the forward.
        grad_input (Tensor): (B, C, H, W), added to.
        grad_offset (Tensor): As ``offset``, written.
        pooled_height (int): As in the forward.
        pooled_width (int): As in the forward.
        spatial_scale (float): As in the forward.
        sampling_ratio (int): As in the forward.
        gamma (float): As in the forward.
    """
    features = computable(input)
    regions = rois.to(features.dtype)
    size = (regions[:, 3:] - regions[:, 1:3]) * spatial_scale * gamma
    for group in _bins(regions, offset.to(features.dtype), pooled_height,
                       pooled_width, spatial_scale, sampling_ratio, gamma):
        grad = grad_output[group.members].permute(0, 2, 3, 1).flatten(
            0, 2).to(features.dtype)  # (k * bins, C)
        shared = (grad / (group.rows * group.columns))[..., None, None]
        grad_input += torch.ops.torchvision._roi_align_backward(
            shared.expand(-1, -1, group.rows, group.columns).contiguous(),
            group.boxes, 1., group.rows, group.columns, *features.shape, 1,
            True).to(grad_input.dtype)
        if offset.numel():
            of_shift = torch.stack(
                _shift_gradients(grad, features, group), 1)
            of_shift = of_shift.view(-1, pooled_height, pooled_width, 2)
            of_shift = of_shift * size[group.members, None, None]
            grad_offset[group.members] = of_shift.permute(0, 3, 1, 2).to(
                grad_offset.dtype)
