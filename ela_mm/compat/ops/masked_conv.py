"""Masked convolution: im2col and col2im at some pixels only.

mmcv multiplies the columns by the weight itself. It trains without a mask, so
no gradient is needed.
"""
import torch.nn.functional as F
from torch import Tensor


def masked_im2col_forward(im: Tensor, mask_h_idx: Tensor, mask_w_idx: Tensor,
                          col: Tensor, kernel_h: int, kernel_w: int,
                          pad_h: int, pad_w: int) -> None:
    """Copy what the kernel sees at the pixels of the mask, into ``col``.

    Args:
        im (Tensor): (1, C, H, W).
        mask_h_idx (Tensor): (N, ) int64, rows of the pixels.
        mask_w_idx (Tensor): (N, ) int64, their columns.
        col (Tensor): (C * kernel_h * kernel_w, N), written.
        kernel_h (int): Height of the kernel.
        kernel_w (int): Width of the kernel.
        pad_h (int): Rows of zeros above and below.
        pad_w (int): Columns of zeros on both sides.
    """
    padded = F.pad(im[0], (pad_w, pad_w, pad_h, pad_h))
    # (C, H_out, W_out, kernel_h, kernel_w), a view
    windows = padded.unfold(1, kernel_h, 1).unfold(2, kernel_w, 1)
    seen = windows[:, mask_h_idx, mask_w_idx]  # (C, N, kernel_h, kernel_w)
    col.copy_(seen.permute(0, 2, 3, 1).reshape(col.shape))


def masked_col2im_forward(col: Tensor, mask_h_idx: Tensor, mask_w_idx: Tensor,
                          im: Tensor, height: int, width: int,
                          channels: int) -> None:
    """Write columns to the pixels of the mask; others do not change.

    Args:
        col (Tensor): (channels, N).
        mask_h_idx (Tensor): (N, ) int64, rows of the pixels.
        mask_w_idx (Tensor): (N, ) int64, their columns.
        im (Tensor): (1, channels, height, width), written.
        height (int): Not used, ``im`` has it.
        width (int): Not used.
        channels (int): Not used.
    """
    im[0, :, mask_h_idx, mask_w_idx] = col
