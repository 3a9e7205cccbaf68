"""Masks of point-wise spatial attention (Zhao et al., ECCV 2018).

Every pixel has a mask, relative to its position. The result has, for every pair
of pixels, the value of one pixel's mask at the other.
"""
from typing import Tuple

import torch
from torch import Tensor


def _places(h_feature: int, w_feature: int, h_mask: int, w_mask: int,
            half_h_mask: int, half_w_mask: int,
            device: torch.device) -> Tuple[Tensor, Tensor]:
    """Return for (other pixel, own pixel) the mask's channel and if it exists.

    Both are (H * W, H * W).
    """
    y, x = (axis.flatten() for axis in torch.meshgrid(
        torch.arange(h_feature, device=device),
        torch.arange(w_feature, device=device), indexing='ij'))
    row = y[:, None] - y + half_h_mask
    column = x[:, None] - x + half_w_mask
    inside = (row >= 0) & (row < h_mask) & (column >= 0) & (column < w_mask)
    return (row * w_mask + column).where(inside, torch.zeros_like(row)), inside


def psamask_forward(input: Tensor, output: Tensor, psa_type: int, num_: int,
                    h_feature: int, w_feature: int, h_mask: int, w_mask: int,
                    half_h_mask: int, half_w_mask: int) -> None:
    """Spread the masks over pairs of pixels, into ``output``.

    Args:
        input (Tensor): (B, h_mask * w_mask, H, W).
        output (Tensor): (B, H * W, H, W), written.
        psa_type (int): 0 if the pixel of the mask is on the last axis
            (collect), 1 if it is on the second axis (distribute).
        num_ (int): Not used, B.
        h_feature (int): H, height of the map.
        w_feature (int): W, width of the map.
        h_mask (int): Height of a mask.
        w_mask (int): Width of a mask.
        half_h_mask (int): Middle row of a mask.
        half_w_mask (int): Middle column of a mask.
    """
    channel, inside = _places(h_feature, w_feature, h_mask, w_mask,
                              half_h_mask, half_w_mask, input.device)
    pairs = input.flatten(2).gather(
        1, channel.expand(len(input), *channel.shape)) * inside
    if psa_type == 1:
        pairs = pairs.transpose(1, 2)
    output.copy_(pairs.reshape(output.shape))


def psamask_backward(grad_output: Tensor, grad_input: Tensor, psa_type: int,
                     num_: int, h_feature: int, w_feature: int, h_mask: int,
                     w_mask: int, half_h_mask: int, half_w_mask: int) -> None:
    """Add the gradient of :func:`psamask_forward` to ``grad_input``.

    Args:
        grad_output (Tensor): (B, H * W, H, W).
        grad_input (Tensor): (B, h_mask * w_mask, H, W), added to.
        psa_type (int): As in the forward.
        num_ (int): Not used.
        h_feature (int): As in the forward.
        w_feature (int): As in the forward.
        h_mask (int): As in the forward.
        w_mask (int): As in the forward.
        half_h_mask (int): As in the forward.
        half_w_mask (int): As in the forward.
    """
    channel, inside = _places(h_feature, w_feature, h_mask, w_mask,
                              half_h_mask, half_w_mask, grad_output.device)
    pairs = grad_output.flatten(2)
    if psa_type == 1:
        pairs = pairs.transpose(1, 2)
    grad_input.flatten(2).scatter_add_(
        1, channel.expand(len(pairs), *channel.shape), pairs * inside)
