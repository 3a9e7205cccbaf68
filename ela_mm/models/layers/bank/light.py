"""A layer of MRLA-light as one autograd function.

It computes what :class:`~ela_mm.models.layers.light_attention.LightLayerAttention`
computes in plain operations, from pooling to the addition to the block's output,
with a handwritten gradient.
"""
import math
from typing import Tuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ....compat.products import scaled_bmm
from .batch_norm import Statistics
from .gated import gated_value, gated_value_backward
from .keys import at_least_float32, without_autocast
from .layer import Plan, add_up, along_channels, finish, finish_backward


class Mix(torch.autograd.Function):
    """x plus the normalised and scaled sum gate * value + mix * identity.

    ``apply`` takes x and the identity (B, C, H, W); the kernels of key and query
    (1, 1, k) and of the value (C, 1, 3, 3); mix, gamma, beta and scale (C), of
    which scale may be None; and a
    :class:`~ela_mm.models.layers.bank.layer.Plan`. It returns (B, C, H, W).
    """

    @staticmethod
    def forward(ctx, x, identity, key, query, kernel, mix, gamma, beta, scale,
                plan: Plan):
        ctx.plan = plan
        with without_autocast(x.device):
            pooled = x.mean((2, 3), dtype=at_least_float32(x.dtype))  # (B, C)
            # Forward takes the first two, backward the last two, which are swapped.
            kernels = torch.cat([query, key, query]).unsqueeze(1).to(
                pooled.dtype)  # (3, 1, 1, k)
            projected = _project(pooled, kernels[:2]).view(
                2, -1, plan.head_dim)  # (2, B h, d)
            gate = torch.sigmoid(scaled_bmm(  # (B h, 1, d) @ (B h, d, 1)
                projected[0].unsqueeze(1), projected[1].unsqueeze(2),
                1 / math.sqrt(plan.head_dim))).view(len(x), -1)  # (B, h)
        # Detached: some torch versions' autocast would cache the cast made here,
        # which has no history, and hand it to later users of the weight.
        value, kept = gated_value(plan.value, x.detach(), kernel.detach(),
                                  gate)  # (B, C, H, W)
        with without_autocast(x.device):
            identity = identity.to(value.dtype)
            mixed = value.addcmul_(along_channels(mix, value), identity)
            out, statistics = finish(plan, x, mixed, gamma, beta, scale)
        ctx.rest = statistics[3:]
        ctx.save_for_backward(x, identity, kernel, mix, gamma, beta, scale,
                              mixed, pooled, kernels, projected, gate, kept,
                              *statistics[:3])
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        (x, identity, kernel, mix, *affine, mixed, pooled, kernels, projected,
         gate, kept, mean, spread, invstd) = ctx.saved_tensors
        plan, needs = ctx.plan, ctx.needs_input_grad
        with without_autocast(x.device):
            of_mixed, *of_affine = finish_backward(
                plan, grad.to(mixed.dtype), mixed, *affine,
                Statistics(mean, spread, invstd, *ctx.rest))
            of_mix = torch.bmm(  # (B C, 1, H W) @ (B C, H W, 1)
                of_mixed.reshape(-1, 1, x.shape[2:].numel()),
                identity.reshape(-1, x.shape[2:].numel(), 1)).view(
                    x.shape[:2]).sum(0).to(mix.dtype)  # (C)
            of_identity = of_mixed * along_channels(mix, of_mixed)
            of_x, of_kernel, of_gate = gated_value_backward(
                plan.value, of_mixed, x, kernel, gate, kept, needs[0],
                1 / math.sqrt(plan.head_dim))
            of_logits = torch.ops.aten.sigmoid_backward(of_gate, gate)  # (B, h)
            # The gradient of the key has the query as a factor, and vice versa.
            of_pooled, of_kernels = _project_backward(
                (projected.view(2, *gate.shape, -1) *
                 of_logits[..., None]).view(2, *pooled.shape), pooled,
                kernels[1:])
            if needs[0]:
                of_x = add_up(of_x, grad if plan.adds else None, of_pooled, x)
        of_key, of_query = of_kernels.squeeze(1).to(kernel.dtype).split(1)
        return (of_x, of_identity, of_key, of_query, of_kernel, of_mix,
                *of_affine, None)


def _project(pooled: Tensor, kernels: Tensor) -> Tensor:
    """Convolve (B, C) over the channels by kernels (2, 1, 1, k): (2, B, C)."""
    # The batch becomes the height of one image: each result is contiguous.
    size, padding = kernels.shape[2:], (0, kernels.shape[-1] // 2)
    if pooled.device.type == 'cpu':  # oneDNN is slow here, and in backward
        return torch.ops.aten._slow_conv2d_forward(
            pooled[None, None], kernels, size, None, (1, 1), padding)[0]
    return torch.conv2d(pooled[None, None], kernels, None, 1, padding)[0]


def _project_backward(grad: Tensor, pooled: Tensor,
                      kernels: Tensor) -> Tuple[Tensor, Tensor]:
    """Return the gradients of _project's arguments, (B, C) and (2, 1, 1, k)."""
    size, padding = kernels.shape[2:], (0, kernels.shape[-1] // 2)
    wanted = (True, True, False)
    if pooled.device.type == 'cpu':
        found = torch.ops.aten._slow_conv2d_backward.output_mask(
            grad[None], pooled[None, None], kernels, size, (1, 1), padding,
            wanted)
    else:
        found = torch.ops.aten.convolution_backward(
            grad[None], pooled[None, None], kernels, None, (1, 1), padding,
            (1, 1), False, (0, 0), 1, wanted)
    return found[0][0, 0], found[1]
