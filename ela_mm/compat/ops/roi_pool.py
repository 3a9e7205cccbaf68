"""RoIPool (Girshick, ICCV 2015) with mmcv's bins.

torchvision's RoIPool first rounds a region to whole pixels and mmcv's does not,
so that the two agree only for whole pixels at scale 1. Weights trained with one
do not fit the other.
"""
from typing import Iterator, List, Tuple

import torch
from torch import Tensor

from .precision import computable

# Number of elements that are gathered at once; about 64 MB in float32.
_AT_ONCE = 1 << 24


def _edges(start: Tensor, end: Tensor, bins: int,
           limit: int) -> Tuple[Tensor, Tensor]:
    """Return the first pixel of every bin, and one past the last: (K, bins)."""
    size = (end - start)[:, None] / bins
    place = torch.arange(bins, device=start.device)
    first = torch.floor(place * size + start[:, None])
    last = torch.ceil((place + 1) * size + start[:, None])
    return first.clamp(0, limit).long(), last.clamp(0, limit).long()


def _pixels(first: Tensor, last: Tensor) -> Tensor:
    """Return the pixels of every bin, (K, bins, n), the last one repeated."""
    n = int((last - first).max().clamp(min=1))
    pixels = first[..., None] + torch.arange(n, device=first.device)
    return torch.minimum(pixels, (last[..., None] - 1).clamp(min=0))


def _alike(sizes: Tensor, channels: int) -> Iterator[Tensor]:
    """Yield groups of regions of similar size, as large as memory allows.

    Args:
        sizes (Tensor): (K, ), number of pixels in all bins of each region.
        channels (int): Number of channels.

    Yields:
        Tensor: Indices, largest regions first.
    """
    order = sizes.argsort(descending=True)
    largest: List[int] = sizes[order].tolist()
    start = 0
    while start < len(order):
        count = max(1, _AT_ONCE // max(1, largest[start] * channels))
        yield order[start:start + count]
        start += count


def roi_pool_forward(input: Tensor, rois: Tensor, output: Tensor,
                     argmax: Tensor, pooled_height: int, pooled_width: int,
                     spatial_scale: float) -> None:
    """Take the maximum of every bin, into ``output``.

    Args:
        input (Tensor): (B, C, H, W).
        rois (Tensor): (K, 5), batch index and x1 y1 x2 y2 in image pixels, of
            which the last belong to the region.
        output (Tensor): (K, C, pooled_height, pooled_width), written; 0 where
            a bin has no pixel.
        argmax (Tensor): Same shape, written: row * W + column of the maximum,
            -1 where there is none.
        pooled_height (int): Bins per region, vertically.
        pooled_width (int): Bins per region, horizontally.
        spatial_scale (float): Feature pixels per image pixel.
    """
    features = computable(input)
    _, channels, height, width = features.shape
    regions = computable(rois).to(features.dtype)
    x1, y1 = (regions[:, i] * spatial_scale for i in (1, 2))
    x2, y2 = ((regions[:, i] + 1) * spatial_scale for i in (3, 4))
    top, bottom = _edges(y1, y2, pooled_height, height)
    left, right = _edges(x1, x2, pooled_width, width)
    # (K, bins vertically, bins horizontally)
    empty = (bottom <= top)[:, :, None] | (right <= left)[:, None, :]
    empty |= ((x2 <= x1) | (y2 <= y1))[:, None, None]
    sizes = ((bottom - top).amax(1).clamp(min=1) * pooled_height *
             (right - left).amax(1).clamp(min=1) * pooled_width)
    flat = features.flatten(2).transpose(0, 1)  # (C, B, H * W)
    for members in _alike(sizes, channels):
        rows = _pixels(top[members], bottom[members])
        columns = _pixels(left[members], right[members])
        # (k, bins vertically, bins horizontally, pixels of a bin)
        places = (rows[:, :, None, :, None] * width +
                  columns[:, None, :, None, :]).flatten(3)
        batch = regions[members, 0].long()[:, None, None, None]
        maxima, chosen = flat[:, batch, places].max(4)
        places = places.expand(channels, *places.shape).gather(
            4, chosen[..., None]).squeeze(4)
        nothing = empty[members]
        output[members] = maxima.masked_fill(nothing, 0).transpose(0, 1).to(
            output.dtype)
        argmax[members] = places.masked_fill(nothing, -1).transpose(0, 1).to(
            argmax.dtype)


def roi_pool_backward(grad_output: Tensor, rois: Tensor, argmax: Tensor,
                      grad_input: Tensor, pooled_height: int,
                      pooled_width: int, spatial_scale: float) -> None:
    """Add the gradient of :func:`roi_pool_forward` to ``grad_input``.

    Args:
        grad_output (Tensor): (K, C, pooled_height, pooled_width).
        rois (Tensor): As in the forward.
        argmax (Tensor): As the forward wrote it.
        grad_input (Tensor): (B, C, H, W), added to.
        pooled_height (int): Not used, ``grad_output`` has it.
        pooled_width (int): Not used.
        spatial_scale (float): Not used, ``argmax`` has the pixels.
    """
    _, channels, height, width = grad_input.shape
    planes = rois[:, :1].long() * channels + torch.arange(
        channels, device=rois.device)  # (K, C)
    places = argmax.long() + planes[:, :, None, None] * height * width
    chosen = argmax >= 0
    grad_input.view(-1).index_add_(0, places[chosen], grad_output[chosen])
