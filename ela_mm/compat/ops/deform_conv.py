"""Deformable convolution v1 and v2, by torchvision's kernels.

Offsets have the same layout in both libraries: vertical before horizontal, for
each kernel position, for each deformable group.
"""
from typing import Tuple

import torch
import torchvision
from torch import Tensor

from .precision import computable

# An offset larger than any image, which float16 can represent.
_FAR = 1e4


def _safe(offset: Tensor, dtype: torch.dtype) -> Tensor:
    """Move samples at NaN or infinity outside of the image, as mmcv does.

    There they are 0. If a network diverges, torchvision's kernels would read
    invalid memory and crash the process.
    """
    return offset.to(dtype).nan_to_num(-_FAR, _FAR, -_FAR)


def _as_read(x: Tensor, height: int, width: int) -> Tensor:
    """Return offsets or masks as mmcv's v2 reads them.

    mmcv assumes that they have the size of the output, without a check. DyHead
    passes larger ones, and its trained weights rely on what is read then: the
    beginning of each image's memory.

    Args:
        x (Tensor): (B, C, H, W), contiguous offsets or masks.
        height (int): Height of the output.
        width (int): Width of the output.

    Returns:
        Tensor: (B, C, height, width); x itself if it has this size.

    Raises:
        ValueError: If x is smaller; mmcv would read memory beyond it.
    """
    batch, channels, *shape = x.shape
    if shape == [height, width]:
        return x
    if shape[0] * shape[1] < height * width:
        raise ValueError(
            f'offsets and masks of {shape[0]} x {shape[1]} pixels for an '
            f'output of {height} x {width}: expected as many')
    return x.flatten(1)[:, :channels * height * width].reshape(
        batch, channels, height, width)


def _gradients(grad_output: Tensor, input: Tensor, weight: Tensor,
               offset: Tensor, mask: Tensor, *geometry: int) -> Tuple:
    """Compute the gradients of input, weight, offset, mask and bias.

    The mask may be empty.
    """
    modulated = mask.numel() > 0
    input = computable(input)
    bias = input.new_zeros(weight.size(0))
    others = [weight.to(input.dtype), _safe(offset, input.dtype),
              mask.to(input.dtype)]
    if not modulated:
        others[2] = input.new_zeros(input.size(0), 1)
    return torch.ops.torchvision._deform_conv2d_backward(
        grad_output.to(input.dtype), input, *others, bias, *geometry,
        modulated)


def deform_conv_forward(input: Tensor, weight: Tensor, offset: Tensor,
                        output: Tensor, columns: Tensor, ones: Tensor, kW: int,
                        kH: int, dW: int, dH: int, padW: int, padH: int,
                        dilationW: int, dilationH: int, group: int,
                        deformable_group: int, im2col_step: int) -> None:
    """Run deformable convolution (Dai et al., ICCV 2017), into ``output``.

    Args:
        input (Tensor): (B, C, H, W).
        weight (Tensor): (C_out, C / group, kH, kW).
        offset (Tensor): (B, 2 * deformable_group * kH * kW, H_out, W_out), in
            pixels.
        output (Tensor): (B, C_out, H_out, W_out), written.
        columns (Tensor): Not used here; mmcv's signature has it.
        ones (Tensor): Not used.
        kW (int): Not used, ``weight`` has it.
        kH (int): Not used.
        dW (int): Horizontal stride.
        dH (int): Vertical stride.
        padW (int): Horizontal padding.
        padH (int): Vertical padding.
        dilationW (int): Horizontal dilation.
        dilationH (int): Vertical dilation.
        group (int): Not used, shapes tell it.
        deformable_group (int): Not used.
        im2col_step (int): Not used.
    """
    features = computable(input)
    output.copy_(
        torchvision.ops.deform_conv2d(
            features, _safe(offset, features.dtype), weight.to(features.dtype),
            stride=(dH, dW), padding=(padH, padW),
            dilation=(dilationH, dilationW)))


def deform_conv_backward_input(input: Tensor, offset: Tensor,
                               grad_output: Tensor, grad_input: Tensor,
                               grad_offset: Tensor, weight: Tensor,
                               columns: Tensor, kW: int, kH: int, dW: int,
                               dH: int, padW: int, padH: int, dilationW: int,
                               dilationH: int, group: int,
                               deformable_group: int,
                               im2col_step: int) -> None:
    """Compute the gradients of the input and the offsets.

    torchvision computes that of the weight at the same time. It is kept in
    ``columns``, the scratch tensor that mmcv passes to both parts of the
    backward pass.

    Args:
        input (Tensor): As in :func:`deform_conv_forward`.
        offset (Tensor): As in the forward.
        grad_output (Tensor): (B, C_out, H_out, W_out).
        grad_input (Tensor): (B, C, H, W), written.
        grad_offset (Tensor): As ``offset``, written.
        weight (Tensor): As in the forward.
        columns (Tensor): Written, for :func:`deform_conv_backward_parameters`.
        kW (int): Not used.
        kH (int): Not used.
        dW (int): As in the forward.
        dH (int): As in the forward.
        padW (int): As in the forward.
        padH (int): As in the forward.
        dilationW (int): As in the forward.
        dilationH (int): As in the forward.
        group (int): As in the forward.
        deformable_group (int): As in the forward.
        im2col_step (int): Not used.
    """
    of_input, of_weight, of_offset, _, _ = _gradients(
        grad_output, input, weight, offset, input.new_empty(0), dH, dW, padH,
        padW, dilationH, dilationW, group, deformable_group)
    grad_input.copy_(of_input)
    grad_offset.copy_(of_offset)
    columns.resize_(of_weight.shape).copy_(of_weight)


def deform_conv_backward_parameters(input: Tensor, offset: Tensor,
                                    grad_output: Tensor, grad_weight: Tensor,
                                    columns: Tensor, ones: Tensor, kW: int,
                                    kH: int, dW: int, dH: int, padW: int,
                                    padH: int, dilationW: int, dilationH: int,
                                    group: int, deformable_group: int,
                                    scale: float, im2col_step: int) -> None:
    """Add the weight's gradient, times ``scale``, to ``grad_weight``.

    Args:
        input (Tensor): As in :func:`deform_conv_forward`.
        offset (Tensor): As in the forward.
        grad_output (Tensor): (B, C_out, H_out, W_out).
        grad_weight (Tensor): As the weight, added to.
        columns (Tensor): Gradient from :func:`deform_conv_backward_input`,
            emptied; empty if neither input nor offsets need a gradient.
        ones (Tensor): Not used.
        kW (int): Not used.
        kH (int): Not used.
        dW (int): As in the forward.
        dH (int): As in the forward.
        padW (int): As in the forward.
        padH (int): As in the forward.
        dilationW (int): As in the forward.
        dilationH (int): As in the forward.
        group (int): As in the forward.
        deformable_group (int): As in the forward.
        scale (float): Factor of the gradient.
        im2col_step (int): Not used.
    """
    if columns.numel():
        of_weight = columns.clone()
        columns.resize_(0)
    else:
        # The gradient of the weight does not depend on its values.
        of_weight = _gradients(
            grad_output, input, grad_weight, offset, input.new_empty(0), dH,
            dW, padH, padW, dilationH, dilationW, group, deformable_group)[1]
    grad_weight.add_(of_weight.to(grad_weight.dtype), alpha=scale)


def modulated_deform_conv_forward(input: Tensor, weight: Tensor, bias: Tensor,
                                  ones: Tensor, offset: Tensor, mask: Tensor,
                                  output: Tensor, columns: Tensor,
                                  kernel_h: int, kernel_w: int, stride_h: int,
                                  stride_w: int, pad_h: int, pad_w: int,
                                  dilation_h: int, dilation_w: int, group: int,
                                  deformable_group: int,
                                  with_bias: bool) -> None:
    """Run deformable convolution v2 (Zhu et al., CVPR 2019), into ``output``.

    Args:
        input (Tensor): (B, C, H, W).
        weight (Tensor): (C_out, C / group, kernel_h, kernel_w).
        bias (Tensor): (C_out, ), or empty.
        ones (Tensor): Not used here; mmcv's signature has it.
        offset (Tensor): (B, 2 * deformable_group * kernel_h * kernel_w, H_out,
            W_out), in pixels.
        mask (Tensor): (B, deformable_group * kernel_h * kernel_w, H_out,
            W_out), factors of the samples.
        output (Tensor): (B, C_out, H_out, W_out), written.
        columns (Tensor): Not used.
        kernel_h (int): Not used, ``weight`` has it.
        kernel_w (int): Not used.
        stride_h (int): Vertical stride.
        stride_w (int): Horizontal stride.
        pad_h (int): Vertical padding.
        pad_w (int): Horizontal padding.
        dilation_h (int): Vertical dilation.
        dilation_w (int): Horizontal dilation.
        group (int): Not used, shapes tell it.
        deformable_group (int): Not used.
        with_bias (bool): Whether to add ``bias``.
    """
    features = computable(input)
    weight, bias = weight.to(features.dtype), bias.to(features.dtype)
    offset = _safe(_as_read(offset, *output.shape[2:]), features.dtype)
    mask = _as_read(mask, *output.shape[2:]).to(features.dtype)
    output.copy_(
        torchvision.ops.deform_conv2d(
            features, offset, weight, bias if with_bias else None,
            (stride_h, stride_w), (pad_h, pad_w), (dilation_h, dilation_w),
            mask))


def modulated_deform_conv_backward(
        input: Tensor, weight: Tensor, bias: Tensor, ones: Tensor,
        offset: Tensor, mask: Tensor, columns: Tensor, grad_input: Tensor,
        grad_weight: Tensor, grad_bias: Tensor, grad_offset: Tensor,
        grad_mask: Tensor, grad_output: Tensor, kernel_h: int, kernel_w: int,
        stride_h: int, stride_w: int, pad_h: int, pad_w: int, dilation_h: int,
        dilation_w: int, group: int, deformable_group: int,
        with_bias: bool) -> None:
    """Compute the gradients of :func:`modulated_deform_conv_forward`.

    Args:
        input (Tensor): As in the forward.
        weight (Tensor): As in the forward.
        bias (Tensor): As in the forward.
        ones (Tensor): Not used.
        offset (Tensor): As in the forward.
        mask (Tensor): As in the forward.
        columns (Tensor): Not used.
        grad_input (Tensor): As ``input``, written.
        grad_weight (Tensor): As ``weight``, written.
        grad_bias (Tensor): As ``bias``, written if there is one.
        grad_offset (Tensor): As ``offset``, written.
        grad_mask (Tensor): As ``mask``, written.
        grad_output (Tensor): (B, C_out, H_out, W_out).
        kernel_h (int): Not used.
        kernel_w (int): Not used.
        stride_h (int): As in the forward.
        stride_w (int): As in the forward.
        pad_h (int): As in the forward.
        pad_w (int): As in the forward.
        dilation_h (int): As in the forward.
        dilation_w (int): As in the forward.
        group (int): As in the forward.
        deformable_group (int): As in the forward.
        with_bias (bool): Whether there is a bias.
    """
    size = grad_output.shape[2:]
    gradients = _gradients(
        grad_output, input, weight, _as_read(offset, *size),
        _as_read(mask, *size), stride_h, stride_w, pad_h,
        pad_w, dilation_h, dilation_w, group, deformable_group)
    outputs = [grad_input, grad_weight, grad_offset, grad_mask]
    if with_bias:
        outputs.append(grad_bias)
    for output, gradient in zip(outputs, gradients):
        if output.shape == gradient.shape:
            output.copy_(gradient)
        else:  # see _as_read: the rest was not read
            gradient = gradient.flatten(1)
            output.zero_().flatten(1)[:, :gradient.size(1)] = gradient
