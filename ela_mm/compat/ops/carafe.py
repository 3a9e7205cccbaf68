"""CARAFE (Wang et al., ICCV 2019): upsampling with predicted kernels.

Kernel positions are handled one after the other; all at once would need
kernel_size^2 copies of the features.
"""
from typing import Iterator, Tuple

import torch.nn.functional as F
from torch import Tensor


def _groups(features: Tensor, group_size: int) -> Tensor:
    """(B, C, h, w) to (B, groups, C / groups, h, 1, w, 1)."""
    b, c, h, w = features.shape
    return features.view(b, group_size, c // group_size, h, 1, w, 1)


def _cells(fine: Tensor, group_size: int, scale: int) -> Tensor:
    """(B, C, h * scale, w * scale) to (B, groups, C / groups, h, scale, w,
    scale): the pixels that one coarse pixel becomes."""
    b, c, height, width = fine.shape
    return fine.view(b, group_size, c // group_size, height // scale, scale,
                     width // scale, scale)


def _positions(kernel_size: int, height: int,
               width: int) -> Iterator[Tuple[int, slice, slice]]:
    """Yield each kernel position and the padded features that it sees."""
    for i in range(kernel_size * kernel_size):
        y, x = divmod(i, kernel_size)
        yield i, slice(y, y + height), slice(x, x + width)


def _carafe(features: Tensor, masks: Tensor, output: Tensor, kernel_size: int,
            group_size: int, scale_factor: int) -> None:
    """Write the upsampled features into ``output``."""
    height, width = features.shape[2:]
    padded = F.pad(features, [kernel_size // 2] * 4)
    kernels = _cells(masks, group_size, scale_factor)
    cells = _cells(output.zero_(), group_size, scale_factor)
    for i, rows, columns in _positions(kernel_size, height, width):
        seen = _groups(padded[..., rows, columns].contiguous(), group_size)
        cells.addcmul_(seen, kernels[:, :, i, None])


def _carafe_gradients(grad_output: Tensor, features: Tensor, masks: Tensor,
                      grad_input: Tensor, grad_masks: Tensor, kernel_size: int,
                      group_size: int, scale_factor: int) -> None:
    """Write the gradients of features and masks."""
    height, width = features.shape[2:]
    padded = F.pad(features, [kernel_size // 2] * 4)
    grad_padded = padded.new_zeros(padded.shape)
    kernels = _cells(masks, group_size, scale_factor)
    grad_kernels = _cells(grad_masks, group_size, scale_factor)
    grad = _cells(grad_output.contiguous(), group_size, scale_factor)
    for i, rows, columns in _positions(kernel_size, height, width):
        seen = _groups(padded[..., rows, columns].contiguous(), group_size)
        grad_kernels[:, :, i] = (grad * seen).sum(2)
        grad_padded[..., rows, columns] += (
            grad * kernels[:, :, i, None]).sum((4, 6)).flatten(1, 2)
    border = kernel_size // 2
    grad_input.copy_(grad_padded[..., border:border + height,
                                 border:border + width])


def carafe_naive_forward(features: Tensor, masks: Tensor, output: Tensor,
                         kernel_size: int, group_size: int,
                         scale_factor: int) -> None:
    """Upsample by CARAFE, into ``output``.

    Args:
        features (Tensor): (B, C, h, w).
        masks (Tensor): (B, group_size * kernel_size^2, h * scale_factor,
            w * scale_factor), the kernel of every fine pixel.
        output (Tensor): (B, C, h * scale_factor, w * scale_factor), written.
        kernel_size (int): Side of the kernels, odd.
        group_size (int): Groups of channels, which share a kernel.
        scale_factor (int): Fine pixels per coarse pixel and axis.
    """
    _carafe(features, masks, output, kernel_size, group_size, scale_factor)


def carafe_naive_backward(top_grad: Tensor, features: Tensor, masks: Tensor,
                          bottom_grad: Tensor, mask_grad: Tensor,
                          kernel_size: int, group_size: int,
                          scale_factor: int) -> None:
    """Compute the gradients of :func:`carafe_naive_forward`.

    Args:
        top_grad (Tensor): As the forward's output.
        features (Tensor): As in the forward.
        masks (Tensor): As in the forward.
        bottom_grad (Tensor): As ``features``, written.
        mask_grad (Tensor): As ``masks``, written.
        kernel_size (int): As in the forward.
        group_size (int): As in the forward.
        scale_factor (int): As in the forward.
    """
    _carafe_gradients(top_grad, features, masks, bottom_grad, mask_grad,
                      kernel_size, group_size, scale_factor)


def carafe_forward(features: Tensor, masks: Tensor, rfeatures: Tensor,
                   routput: Tensor, rmasks: Tensor, output: Tensor,
                   kernel_size: int, group_size: int,
                   scale_factor: int) -> None:
    """Do as :func:`carafe_naive_forward`, with mmcv's scratch tensors.

    Args:
        features (Tensor): As there.
        masks (Tensor): As there.
        rfeatures (Tensor): As ``features``, written: a copy for the backward.
        routput (Tensor): Not used here; mmcv's signature has it.
        rmasks (Tensor): Not used.
        output (Tensor): As there, written.
        kernel_size (int): As there.
        group_size (int): As there.
        scale_factor (int): As there.
    """
    rfeatures.copy_(features)
    _carafe(features, masks, output, kernel_size, group_size, scale_factor)


def carafe_backward(top_grad: Tensor, rfeatures: Tensor, masks: Tensor,
                    rtop_grad: Tensor, rbottom_grad_hs: Tensor,
                    rbottom_grad: Tensor, rmask_grad: Tensor,
                    bottom_grad: Tensor, mask_grad: Tensor, kernel_size: int,
                    group_size: int, scale_factor: int) -> None:
    """Compute the gradients of :func:`carafe_forward`.

    Args:
        top_grad (Tensor): As the forward's output.
        rfeatures (Tensor): As the forward wrote them.
        masks (Tensor): As in the forward.
        rtop_grad (Tensor): Not used here; mmcv's signature has it.
        rbottom_grad_hs (Tensor): Not used.
        rbottom_grad (Tensor): Not used.
        rmask_grad (Tensor): Not used.
        bottom_grad (Tensor): As the features, written.
        mask_grad (Tensor): As ``masks``, written.
        kernel_size (int): As in the forward.
        group_size (int): As in the forward.
        scale_factor (int): As in the forward.
    """
    _carafe_gradients(top_grad, rfeatures, masks, bottom_grad, mask_grad,
                      kernel_size, group_size, scale_factor)
