"""A layer of attention as one autograd function.

It computes what :class:`~ela_mm.LayerAttention` computes in plain operations,
from pooling to the addition to the block's output, with a handwritten gradient.
The gradient of the block's output is added up once, in place, and no map is kept
for backward besides those that the block and the banks keep anyway.
"""
import logging
from functools import lru_cache
from itertools import zip_longest
from typing import List, NamedTuple, Optional, Tuple, Type

import torch
from mmengine.logging import print_log
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from . import batch_norm, gpu
from .batch_norm import Statistics
from .keys import (
    KeyBank,
    alias,
    at_least_float32,
    weigh,
    weigh_backward,
    windows,
    windows_backward,
    without_autocast,
)
from .values import ValueBank, head_products, weighted_sum


class Plan(NamedTuple):
    """How a layer is computed: everything that is not a tensor.

    Attributes:
        head_dim (int): d, channels per head.
        value (nn.Conv2d): The value's convolution, read for its stride, padding,
            dilation and groups.
        norm (nn.BatchNorm2d | None): A norm for which
            :func:`~ela_mm.models.layers.bank.batch_norm.can_be_recomputed` is
            true; None if the layer ends with the sum. Defaults to None.
        relu (bool): Whether a relu follows the norm. Defaults to False.
        adds (bool): Whether the result is added to the block's output. Defaults
            to False.
        fused (bool): Whether a GPU runs the layer in Triton kernels, see
            :mod:`ela_mm.models.layers.bank.gpu`. Defaults to False.
    """
    head_dim: int
    value: nn.Conv2d
    norm: Optional[nn.BatchNorm2d] = None
    relu: bool = False
    adds: bool = False
    fused: bool = False


def attend(x: Tensor, keys: KeyBank, values: ValueBank, plan: Plan,
           key: Tensor, query: Optional[Tensor],
           scale: Optional[Tensor]) -> Tuple[Optional[Tensor], ...]:
    """Add a layer's key and value to the banks, and retrieve from them.

    Args:
        x (Tensor): (B, C, H, W), the block's output.
        keys (KeyBank): The stage's keys.
        values (ValueBank): The stage's values.
        plan (Plan): How the layer is computed.
        key (Tensor): (1, 1, k), the weight of the key's convolution over
            channels.
        query (Tensor, optional): (1, 1, k), the weight of the query's
            convolution; None for a layer that only writes its key and value.
        scale (Tensor, optional): (C), the factors by which the term is
            multiplied last; None for no scale.

    Returns:
        tuple: The term (B, C, H, W), or x plus the term if ``plan.adds``; and
        the attention weights P (B, h, n), float32 or wider. Both are None
        without a query.

    Raises:
        UsageError: If there are T keys already.
    """
    function = _Attend
    if plan.fused and _agree(x.device) and gpu.has_kernels(x, values, plan):
        function = gpu.Attend
    out, weights = _attend(function, x, keys, values, plan, key, query, scale)
    if keys.count == keys.capacity and keys.tracked:
        torch._foreach_add_(keys.tracked, 1)
    return out, weights


def _attend(function: Type[torch.autograd.Function], x: Tensor, keys: KeyBank,
            values: ValueBank, plan: Plan, key: Tensor,
            query: Optional[Tensor],
            scale: Optional[Tensor]) -> Tuple[Optional[Tensor], ...]:
    slot, norm = keys.next_slot(x, plan.head_dim), plan.norm
    affine = (None, None) if norm is None else (norm.weight, norm.bias)
    out, weights, keys.state, values.state = function.apply(
        x, keys.state, values.state, key, query, plan.value.weight, *affine,
        scale, slot, values, plan, keys.tracked)
    return out, weights


@lru_cache(maxsize=None)
def _agree(device: torch.device) -> bool:
    """Tell whether a device's kernels compute what the operations compute.

    Tests on one machine cannot vouch for another compiler, driver or chip, so
    this is tried on each device, once.
    """
    reason = 'there is no Triton for it'
    try:
        # Kernels read several numbers of a map at once for sides of 4, but not for
        # sides of 3. Each runs twice: the second time launches a compiled kernel.
        for side in (4, 4, 3, 3) if gpu.has_device(
                torch.empty(0, device=device)) else ():
            ours, theirs = (_trial(function, device, side)
                            for function in (gpu.Attend, _Attend))
            for a, b in zip(ours, theirs):
                torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
            reason = ''
    except Exception as error:  # noqa: BLE001  a compiler's may be any
        reason = (str(error).strip().splitlines() or [repr(error)])[0]
    if reason:
        print_log(f'fused=True: attention runs operation by operation on {device}'
                  f', as without the option: {reason}', 'current',
                  logging.WARNING)
    return not reason


def _trial(function: Type[torch.autograd.Function], device: torch.device,
           side: int) -> List[Tensor]:
    """Return outputs, gradients and statistics of two layers on fixed noise."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> nn.Parameter:
        return nn.Parameter(torch.randn(shape, generator=generator).to(device))

    with torch.inference_mode(False), torch.enable_grad(), (
            without_autocast(device)), torch.random.fork_rng(devices=[]):
        value = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        norm = nn.BatchNorm2d(8).to(device)
        value.weight, norm.weight, norm.bias = draw(8, 1, 3, 3), draw(8), draw(8)
        x, key, query, scale = draw(2, 8, side, side), draw(1, 1, 3), draw(
            1, 1, 3), draw(8)
        keys, values, out = KeyBank(2), ValueBank(2), x
        for _ in range(2):
            out, _ = _attend(function, out, keys, values, Plan(
                4, value, norm, relu=True, adds=True), key, query, scale)
        gradients = torch.autograd.grad(
            out.square().mean(),
            (x, key, query, scale, value.weight, norm.weight, norm.bias))
    return [out, *gradients, norm.running_mean, norm.running_var]


class _Attend(torch.autograd.Function):

    @staticmethod
    def forward(ctx, x, keys, state, key, query, kernel, gamma, beta, scale,
                slot: int, bank: ValueBank, plan: Plan, tracked: List[Tensor]):
        # x (B, C, H, W), keys (T + 1, B, h, d), state (T, B, h, L)
        ctx.set_materialize_grads(False)
        ctx.slot, ctx.plan = slot, plan
        # Aliases with their own version counters: autograd would otherwise object
        # to later layers' writes to other rows of what this layer has saved.
        keys, state = alias(keys), None if state is None else alias(state)
        # Detached: some torch versions' autocast would cache the cast made here,
        # which has no history, and hand it to later users of the weight.
        value = torch.conv2d(x.detach(), kernel.detach(), None,
                             *geometry(plan.value))  # (B, C, H, W)
        with without_autocast(x.device):
            state = bank.write(value, plan.head_dim, slot, state)
            # Not the bank itself: its state refers to this node, so that would be
            # a reference cycle.
            ctx.layout, ctx.retrievals = bank.layout, bank.retrievals
            ctx.first = ctx.retrievals.count  # the first to retrieve this value
            pooled = x.mean((2, 3), dtype=at_least_float32(x.dtype))  # (B, C)
            seen = windows(pooled, key.shape[-1])  # (k, B C)
            # Softmax over one layer is 1, whatever its query.
            kernels = key if query is None or slot == 0 else torch.cat(
                [key, query])
            kernels = kernels.squeeze(1).to(seen.dtype)  # (2, k)
            # Not a convolution, which in float32 may round to TF32.
            projected = torch.mm(kernels, seen).view(
                -1, *keys.shape[1:])  # (2, B, h, d)
            keys[slot].copy_(projected[0])
            out = weights = statistics = None
            if query is not None:
                weights = (
                    weigh(projected[1], keys[:slot + 1]) if slot else
                    pooled.new_ones(*keys.shape[1:3], 1))  # (B, h, n)
                rounded = weights.to(state.dtype)
                ctx.number = bank.retrievals.add(rounded, state)
                retrieved = bank.layout.map(
                    weighted_sum(rounded, state[:slot + 1])
                    if slot else state[0])  # (B, C, H, W)
                out, statistics = finish(plan, x, retrieved, gamma, beta,
                                         scale, tracked)
                if slot == 0 and plan.norm is None:
                    out = out.clone()  # it is the bank's memory
        ctx.rest = statistics and statistics[3:]
        ctx.save_for_backward(x, alias(keys), alias(state), key, query, kernel,
                              gamma, beta, scale, seen, kernels, projected,
                              weights, *(statistics[:3] if statistics else ()))
        return out, weights, keys, state

    @staticmethod
    @once_differentiable
    def backward(ctx, grad, grad_weights, grad_keys, gradients):
        # grad (B, C, H, W) and grad_weights (B, h, n) of this layer, grad_keys
        # (T + 1, B, h, d) and gradients (T, B, h, L) from the later ones
        x, keys, state, key, query, kernel, *rest = ctx.saved_tensors
        *affine, seen, kernels, projected, weights = rest[:7]
        retrievals, layout, needs = (ctx.retrievals, ctx.layout,
                                     ctx.needs_input_grad)
        of_affine = of_x = of_kernel = None
        with without_autocast(x.device):
            if grad is not None:
                rounded, values = weights.to(state.dtype), state[:ctx.slot + 1]
                retrieved = layout.map(
                    retrievals.recompute(ctx.number, rounded, values)
                    if ctx.slot else state[0])  # (B, C, H, W)
                of_sum, *of_affine = finish_backward(
                    ctx.plan, grad.to(state.dtype), retrieved, *affine,
                    rest[7:] and Statistics(*rest[7:], *ctx.rest))
                gradients, flat = retrievals.spread(
                    gradients, ctx.number, of_sum, rounded, state, layout)
                if ctx.slot:
                    of_weights = head_products(flat, values).to(weights.dtype)
                    grad_weights = (
                        of_weights if grad_weights is None else of_weights +
                        grad_weights)  # (B, h, n)
            elif query is not None and gradients is not None:
                retrievals.leave_out(gradients, ctx.number)
            if grad_weights is not None and ctx.slot:
                if grad_keys is None:  # the last layer that has a gradient
                    grad_keys = torch.zeros_like(keys)
                weigh_backward(grad_weights, weights, projected[1],
                               keys[:ctx.slot + 1], grad_keys[:ctx.slot + 1],
                               grad_keys[ctx.slot + 1])
            else:
                kernels = kernels[:1]  # the key's alone
            of_pooled, of_key, of_query = _project_backward(
                grad_keys, ctx.slot, seen, kernels, key, query)
            if gradients is not None and (needs[0] or needs[5]):
                of_value = layout.map(
                    retrievals.of_value(gradients, ctx.slot, ctx.first))
                of_x, of_kernel = value_backward(ctx.plan.value, of_value, x,
                                                  kernel, needs[0], needs[5])
            if needs[0]:
                of_x = add_up(of_x, grad if ctx.plan.adds else None,
                               of_pooled, x)
        return (of_x, grad_keys if needs[1] else None,
                gradients if needs[2] else None, of_key, of_query, of_kernel,
                *(of_affine or [None] * 3), *[None] * 4)


def finish(
    plan: Plan,
    x: Tensor,
    retrieved: Tensor,
    gamma: Optional[Tensor],
    beta: Optional[Tensor],
    scale: Optional[Tensor],
    tracked: Optional[List[Tensor]] = None
) -> Tuple[Tensor, Optional[Statistics]]:
    """Apply norm, relu and scale to the sum, and add x, as ``plan`` says."""
    if plan.norm is None:
        return retrieved, None
    out, statistics = batch_norm.normalize_batch(plan.norm, retrieved, gamma,
                                                 beta, tracked)
    if plan.relu:
        out.relu_()
    if scale is not None:
        out *= along_channels(scale, out)
    if plan.adds:
        out = out.add_(x) if out.dtype == x.dtype else out + x
    return out, statistics


def finish_backward(
        plan: Plan, grad: Tensor, retrieved: Tensor, gamma: Optional[Tensor],
        beta: Optional[Tensor], scale: Optional[Tensor],
        statistics: Optional[Statistics]) -> Tuple[Optional[Tensor], ...]:
    """Return the gradients of the sum (B, C, H, W), gamma, beta, scale (each (C))."""
    of_scale = None
    if plan.norm is None:
        return grad, None, None, None
    if plan.relu or scale is not None:
        term = batch_norm.normalize(retrieved, gamma, beta,
                                    statistics)  # (B, C, H, W)
    if scale is not None:
        out = term.relu() if plan.relu else term
        of_scale = (grad * out).sum((0, 2, 3)).to(scale.dtype)
        grad = grad * along_channels(scale, grad)
    if plan.relu:
        grad = torch.ops.aten.threshold_backward(grad, term, 0)
    return (*batch_norm.normalize_backward(grad, retrieved, gamma, statistics),
            of_scale)


def _project_backward(grad_keys: Optional[Tensor], slot: int, seen: Tensor,
                      kernels: Tensor, key: Tensor, query: Optional[Tensor]
                      ) -> Tuple[Optional[Tensor], ...]:
    """Return the gradients of pooled features (B, C), and of key and query."""
    of_pooled, of_kernels = None, []
    if grad_keys is not None:
        grad = grad_keys[slot:slot + len(kernels)].flatten(1)  # (2, B C)
        of_pooled = windows_backward(
            torch.mm(kernels.t(), grad), grad_keys.shape[1])
        of_kernels = torch.mm(grad, seen.t()).to(key.dtype)[
            :, None, None].unbind()  # (2, k)
    # Zeros, not None: DDP waits for the gradient of every parameter.
    of_kernels = [
        None if kernel is None else grad if grad is not None else
        torch.zeros_like(kernel)
        for kernel, grad in zip_longest((key, query), of_kernels)
    ]
    return of_pooled, *of_kernels


def value_backward(conv: nn.Conv2d, grad: Tensor, x: Tensor, kernel: Tensor,
                   of_x: bool, of_kernel: bool) -> Tuple[Optional[Tensor], ...]:
    """Return the gradients of x and kernel, or None where not needed."""
    stride, padding, dilation, groups = geometry(conv)
    grad_x, grad_kernel, _ = torch.ops.aten.convolution_backward(
        grad, x.to(grad.dtype), kernel.to(grad.dtype), None, stride, padding,
        dilation, False, (0, 0), groups, (of_x, of_kernel, False))
    return grad_x, grad_kernel if grad_kernel is None else grad_kernel.to(
        kernel.dtype)


def add_up(of_x: Optional[Tensor], grad: Optional[Tensor],
           of_pooled: Optional[Tensor], x: Tensor) -> Optional[Tensor]:
    """Add up the gradients of x, in place in ``of_x`` where it is given."""
    own = of_x is not None
    if grad is not None:
        of_x = of_x.to(x.dtype).add_(grad) if own else grad.to(x.dtype)
    if of_pooled is None:
        return of_x
    of_pooled, share = of_pooled[..., None, None], 1 / x.shape[2:].numel()
    if of_x is None:
        return (of_pooled * share).to(x.dtype).expand(x.shape)
    return (of_x.add_ if own else of_x.add)(of_pooled, alpha=share)


def geometry(conv: nn.Conv2d) -> tuple:
    """Return a convolution's stride, padding, dilation and groups."""
    return conv.stride, conv.padding, conv.dilation, conv.groups


def along_channels(x: Tensor, like: Tensor) -> Tensor:
    """Reshape (C) to (1, C, 1, 1), in the dtype of ``like``."""
    return x.to(like.dtype).view(1, -1, 1, 1)
