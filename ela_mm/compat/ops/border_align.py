"""Border align (Qiu et al., ECCV 2020), by torchvision's RoIAlign.

A border is a region without thickness. RoIAlign with one sample per bin samples
its ``pool_size + 1`` positions if it is extended by half a step at either end.
Borders that run backwards are regions of negative extent, which
``aligned=True`` allows.
"""
from typing import Iterator, Tuple

import torch
from torch import Tensor

from .precision import computable


def _borders(boxes: Tensor,
             pool_size: int) -> Iterator[Tuple[int, Tensor, int, int]]:
    """Yield each border as (index, regions, vertical bins, horizontal bins).

    Regions are (B * N, 5), with the index of the image first. Top and left
    start at the first corner; bottom and right start at the second corner and
    run backwards.
    """
    b, n, _ = boxes.shape
    index = torch.arange(b, device=boxes.device, dtype=boxes.dtype)
    index = index[:, None].expand(b, n).reshape(-1)
    x1, y1, x2, y2 = boxes.reshape(-1, 4).unbind(1)
    across, down = (x2 - x1) / pool_size, (y2 - y1) / pool_size
    still = torch.zeros_like(across)
    bins = pool_size + 1
    for i, (x, y, dx, dy) in enumerate(
        ((x1, y1, across, still), (x1, y1, still, down),
         (x2, y2, -across, still), (x2, y2, still, -down))):
        # Half a pixel is added, since RoIAlign subtracts it.
        start = x - dx / 2 + .5, y - dy / 2 + .5
        regions = torch.stack(
            [index, *start, start[0] + bins * dx, start[1] + bins * dy], 1)
        yield i, regions, 1 + pool_size * (i % 2), 1 + pool_size * (1 - i % 2)


def border_align_forward(input: Tensor, boxes: Tensor, output: Tensor,
                         argmax_idx: Tensor, pool_size: int) -> None:
    """Take the maximum along every border of every box, into ``output``.

    Args:
        input (Tensor): (B, 4C, H, W), features of the top, left, bottom and
            right borders.
        boxes (Tensor): (B, N, 4), x1 y1 x2 y2 in feature pixels.
        output (Tensor): (B, C, N, 4), written.
        argmax_idx (Tensor): Same shape, written: position of the maximum.
        pool_size (int): Number of steps along a border, which has one more
            position.
    """
    b, c, n, _ = output.shape
    features = computable(input)
    for i, regions, rows, columns in _borders(
            computable(boxes).to(features.dtype), pool_size):
        samples = torch.ops.torchvision.roi_align(
            features[:, i * c:(i + 1) * c].contiguous(), regions, 1., rows,
            columns, 1, True)  # (B * N, C, rows, columns)
        maxima, positions = samples.flatten(2).max(2)
        output[..., i] = maxima.view(b, n, c).transpose(1, 2).to(output.dtype)
        argmax_idx[..., i] = positions.view(b, n, c).transpose(1, 2).int()


def border_align_backward(grad_output: Tensor, boxes: Tensor,
                          argmax_idx: Tensor, grad_input: Tensor,
                          pool_size: int) -> None:
    """Compute the gradient of :func:`border_align_forward`.

    Args:
        grad_output (Tensor): (B, C, N, 4).
        boxes (Tensor): As in the forward.
        argmax_idx (Tensor): As the forward wrote it.
        grad_input (Tensor): (B, 4C, H, W), written.
        pool_size (int): As in the forward.
    """
    b, c, n, _ = grad_output.shape
    grad = computable(grad_output)
    for i, regions, rows, columns in _borders(
            computable(boxes).to(grad.dtype), pool_size):
        flat = grad[..., i].transpose(1, 2).reshape(b * n, c, 1)
        place = argmax_idx[..., i].transpose(1, 2).reshape(b * n, c, 1)
        samples = flat.new_zeros(b * n, c, pool_size + 1).scatter_(
            2, place.long(), flat)
        grad_input[:, i * c:(i + 1) * c] = (
            torch.ops.torchvision._roi_align_backward(
                samples.view(b * n, c, rows, columns), regions, 1., rows,
                columns, b, c, *grad_input.shape[2:], 1, True))
