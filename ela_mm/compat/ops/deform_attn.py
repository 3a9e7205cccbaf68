"""Multi-scale deformable attention, by mmcv's own code in plain torch.

mmcv uses that code on CPUs itself, and calls the extension on a GPU.
"""
import torch
from torch import Tensor


def _plain(value: Tensor, shapes: Tensor, locations: Tensor,
           weights: Tensor) -> Tensor:
    # Imported here, since mmcv.ops imports this package.
    from mmcv.ops.multi_scale_deform_attn import (
        multi_scale_deformable_attn_pytorch,
    )

    # A list, since reading numbers one by one would synchronise each time.
    return multi_scale_deformable_attn_pytorch(value, shapes.tolist(),
                                               locations, weights)


def ms_deform_attn_forward(value: Tensor, value_spatial_shapes: Tensor,
                           value_level_start_index: Tensor,
                           sampling_locations: Tensor,
                           attention_weights: Tensor,
                           im2col_step: int) -> Tensor:
    """Compute multi-scale deformable attention (Zhu et al., ICLR 2021).

    Args:
        value (Tensor): (B, keys, heads, head_dim), levels concatenated.
        value_spatial_shapes (Tensor): (levels, 2), height and width.
        value_level_start_index (Tensor): Not used here, the shapes tell it.
        sampling_locations (Tensor): (B, queries, heads, levels, points, 2), x
            and y as shares of the level's width and height.
        attention_weights (Tensor): (B, queries, heads, levels, points).
        im2col_step (int): Not used.

    Returns:
        Tensor: (B, queries, heads * head_dim).
    """
    return _plain(value, value_spatial_shapes, sampling_locations,
                  attention_weights)


def ms_deform_attn_backward(value: Tensor, value_spatial_shapes: Tensor,
                            value_level_start_index: Tensor,
                            sampling_locations: Tensor,
                            attention_weights: Tensor, grad_output: Tensor,
                            grad_value: Tensor, grad_sampling_loc: Tensor,
                            grad_attn_weight: Tensor,
                            im2col_step: int) -> None:
    """Compute gradients of :func:`ms_deform_attn_forward`, by recomputing it.

    Args:
        value (Tensor): As in the forward.
        value_spatial_shapes (Tensor): As in the forward.
        value_level_start_index (Tensor): Not used.
        sampling_locations (Tensor): As in the forward.
        attention_weights (Tensor): As in the forward.
        grad_output (Tensor): (B, queries, heads * head_dim).
        grad_value (Tensor): As ``value``, written.
        grad_sampling_loc (Tensor): As ``sampling_locations``, written.
        grad_attn_weight (Tensor): As ``attention_weights``, written.
        im2col_step (int): Not used.
    """
    with torch.enable_grad():
        inputs = [x.detach().requires_grad_() for x in (
            value, sampling_locations, attention_weights)]
        output = _plain(inputs[0], value_spatial_shapes, *inputs[1:])
        gradients = torch.autograd.grad(output, inputs, grad_output)
    for written, gradient in zip(
            (grad_value, grad_sampling_loc, grad_attn_weight), gradients):
        written.copy_(gradient)
