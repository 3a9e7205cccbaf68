"""Multi-scale deformable attention, by mmcv's own plain form.

mmcv takes that form on CPUs by itself and asks the extension on a GPU.
"""
import torch
from torch import Tensor


def _plain(value: Tensor, shapes: Tensor, locations: Tensor,
           weights: Tensor) -> Tensor:
    # Late: mmcv.ops asks for this package while it is imported itself.
    from mmcv.ops.multi_scale_deform_attn import (
        multi_scale_deformable_attn_pytorch,
    )

    # As numbers at once: taken one by one, each would wait for the GPU.
    return multi_scale_deformable_attn_pytorch(value, shapes.tolist(),
                                               locations, weights)


def ms_deform_attn_forward(value: Tensor, value_spatial_shapes: Tensor,
                           value_level_start_index: Tensor,
                           sampling_locations: Tensor,
                           attention_weights: Tensor,
                           im2col_step: int) -> Tensor:
    """Multi-scale deformable attention (Zhu et al., ICLR 2021).

    Args:
        value (Tensor): (B, keys, heads, head_dim), the levels one after the
            other.
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
    """Gradients of :func:`ms_deform_attn_forward`, which is recomputed.

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
