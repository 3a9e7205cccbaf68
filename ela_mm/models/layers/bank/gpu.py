"""A layer of attention in Triton kernels: an option for GPUs.

A backbone's ``fused=True`` turns it on. The autograd function of :mod:`~.layer`,
over the same banks, here runs the kernels of :mod:`~.kernels`: 5 forward and 9
backward instead of some 35 operations, with half of the passes over maps. Each
layer of a stage uses kernels or operations independently of the others.
"""
import math
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from typing import ContextManager, Iterable, Iterator, List, Optional, Tuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils._python_dispatch import _get_current_dispatch_mode

from .keys import alias, at_least_float32
from .values import LongStage, ValueBank, new_gradients

try:
    import triton
    import triton.language as tl

    from .kernels import backward, forward
    from .kernels.launching import INTERPRETED
except Exception:  # noqa: BLE001  no Triton, or a version without what is used
    triton, INTERPRETED = None, False

_OFF: ContextVar[bool] = ContextVar('ela_mm_kernels_off', default=False)
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@contextmanager
def without_kernels() -> Iterator[None]:
    """Make layers run in PyTorch's operations within this context."""
    token = _OFF.set(True)
    try:
        yield
    finally:
        _OFF.reset(token)


def has_device(x: Tensor) -> bool:
    """Tell whether kernels can run on a tensor's device."""
    return triton is not None and (x.is_cuda or INTERPRETED)


def has_kernels(x: Tensor, values: ValueBank, plan) -> bool:
    """Tell whether kernels can compute a layer.

    Args:
        x (Tensor): (B, C, H, W), the block's output.
        values (ValueBank): The stage's values.
        plan (ela_mm.models.layers.bank.layer.Plan): How the layer is computed.

    Returns:
        bool: False in channels last; for a value other than a depthwise 3 x 3
        convolution of stride 1; for a batch norm of more than 1024 samples or of
        one number per channel; in a stage whose first layers ran without kernels
        and laid out the bank differently; and while a dispatch mode counts or
        fakes PyTorch's operations.
    """
    if not has_device(x) or _OFF.get() or type(x) is not Tensor or (
            _get_current_dispatch_mode() is not None):
        return False
    dtype, norm, value = _dtype_of(x), plan.norm, plan.value
    if dtype not in _DTYPES or not x.is_contiguous() or value.groups != x.shape[1]:
        return False
    if value.weight.shape[1:] != (1, 3, 3) or not (
            value.stride == value.padding == value.dilation == (1, 1)):
        return False
    # One tile holds the statistics of all samples of a batch norm's channel.
    if norm is not None and (
            norm.running_mean.dtype != at_least_float32(dtype)
            or len(x) > 1024 or len(x) * x.shape[2:].numel() == 1):
        return False
    return values.state is None or (
        type(values.retrievals) is LongStage and values.state.dtype == dtype
        and not values.layout.channels_last)


def _dtype_of(x: Tensor) -> torch.dtype:
    """Return the dtype of a convolution's result, which autocast may set."""
    if x.is_cuda and torch.is_autocast_enabled() and x.dtype != torch.float64:
        return torch.get_autocast_gpu_dtype()
    return x.dtype


def _on(x: Tensor) -> ContextManager:
    """Return a context in which x's device is current, where Triton launches."""
    return torch.cuda.device(x.device) if x.is_cuda and (
        x.device.index != torch.cuda.current_device()) else nullcontext()


class Tiles:
    """How kernels divide maps (B, C, H, W) into tiles.

    Args:
        x (Tensor): (B, C, H, W), a map, which has B C planes.
        numbers (int): The number of elements of a tile, which covers one plane, a
            part of it, or several small ones.
        warps (int): The number of warps per program, of 32 threads each.
        planes (int, optional): The number of planes in a tile. Defaults to as
            many as fit.

    Attributes:
        planes (int): B C, the number of planes.
        size (int): H W, the number of elements of a plane.
        constants (tuple): The kernels' constants PLANES, BLOCK and ACC.
        warps (int): The number of warps per program, as above.
        programs (int): The number of programs over the planes.
        across (int): The number of blocks in a plane.
    """

    def __init__(self, x: Tensor, numbers: int, warps: int,
                 planes: Optional[int] = None) -> None:
        self.planes, self.size = x.shape[0] * x.shape[1], x.shape[2:].numel()
        block = min(triton.next_power_of_2(self.size), numbers)
        planes = planes or numbers // block
        self.constants = (planes, block, accumulator(x))
        self.warps = warps
        self.programs = triton.cdiv(self.planes, planes)
        self.across = triton.cdiv(self.size, block)


def streaming(x: Tensor) -> Tiles:
    """Return tiles for kernels that read each number once."""
    return Tiles(x, 2048, 8)


def one_by_one(x: Tensor) -> Tiles:
    """Return tiles of one plane and one warp, for sums over a plane."""
    return Tiles(x, 256, 1, planes=1)


def accumulator(x: Tensor):
    """Return the Triton dtype in which kernels compute with a tensor."""
    return tl.float64 if x.dtype == torch.float64 else tl.float32


def _alike(x: Tensor, state: Tensor, maps: Iterable[Tensor],
           *others: Optional[Tensor]) -> tuple:
    """Return what a kernel is compiled for, as ``Kernel.launch`` takes it.

    These are alignment, device, dtypes, whether strides need 64 bits, and None for
    tensors that are missing.
    """
    aligned = x.shape[2:].numel() % 16 == 0 and not any(
        t.data_ptr() % 16 for t in (x, state, *maps))
    return (aligned, x.device, x.dtype, state.dtype,
            state.stride(0) >= 2**31, *(t if t is None else t.dtype
                                        for t in (*maps, *others)))


class Attend(torch.autograd.Function):
    """``_Attend`` of :mod:`ela_mm.models.layers.bank.layer`, in kernels."""

    @staticmethod
    def forward(ctx, x, keys, state, key, query, kernel, gamma, beta, scale,
                slot: int, bank: ValueBank, plan, tracked: List[Tensor]):
        # x (B, C, H, W), keys (T + 1, B, h, d), state (T, B, h, L)
        ctx.set_materialize_grads(False)
        ctx.slot, ctx.plan = slot, plan
        with _on(x):
            keys = alias(keys)
            state = bank.begin(x, _dtype_of(x), plan.head_dim) if (
                state is None) else alias(state)
            retrievals = ctx.retrievals = bank.retrievals
            ctx.first = retrievals.count  # the first to retrieve this value
            table = retrievals.table(state)  # (T, B, h, T)
            alike = _alike(x, state, (), key, query, kernel, gamma, beta, scale)
            tiles = Tiles(x, 1024, 8)
            pooled = x.new_empty(
                x.shape[:2], dtype=at_least_float32(x.dtype))  # (B, C)
            forward.project_value.launch(
                tiles.programs, alike,
                (x, kernel, state[slot], pooled, tiles.planes, x.shape[1],
                 tiles.size, *x.shape[2:]), tiles.constants, tiles.warps)
            batch, heads, dim = keys.shape[1:]
            queries = weights = None
            ctx.number = retrievals.count
            if query is not None:
                retrievals.count += 1
                queries = keys.new_empty(batch, heads, dim)
                weights = keys.new_empty(batch, heads, slot + 1)
            forward.weigh.launch(
                batch * heads, alike,
                (pooled, key, query, keys, queries, weights, table, slot,
                 ctx.number, len(state), heads, dim, 1 / math.sqrt(dim)),
                (query is not None, key.shape[-1], *_by_head(slot, keys)), 1)
            out = mean = invstd = None
            if query is not None:
                out, mean, invstd = _retrieve(
                    plan, x, state, table, ctx.number, slot, gamma, beta,
                    scale, tracked, alike)
        ctx.own = mean is not None and plan.norm.training
        ctx.save_for_backward(x, alias(keys), alias(state), key, query, kernel,
                              gamma, beta, scale, pooled, queries, weights,
                              mean, invstd)
        return out, weights, keys, state

    @staticmethod
    @once_differentiable
    def backward(ctx, grad, grad_weights, grad_keys, gradients):
        # grad (B, C, H, W) and grad_weights (B, h, n) of this layer, grad_keys
        # (T + 1, B, h, d) and gradients (T, B, h, L) from the later ones
        (x, keys, state, key, query, kernel, gamma, beta, scale, pooled,
         queries, weights, mean, invstd) = ctx.saved_tensors
        slot, needs = ctx.slot, ctx.needs_input_grad
        grad = None if grad is None else grad.contiguous()
        alike = _alike(x, state, () if grad is None else (grad, ), key, query,
                       kernel, gamma, beta, scale)
        of_affine, products = (None, None, None), None
        with _on(x):
            if grad is not None:
                if gradients is None:
                    gradients = new_gradients(state)
                    gradients[ctx.number + 1:].zero_()
                of_affine, products = _retrieve_backward(
                    ctx, grad, state, gradients[ctx.number], gamma, beta, scale,
                    mean, invstd, alike)
            elif query is not None and gradients is not None:
                ctx.retrievals.leave_out(gradients, ctx.number)
            # Softmax over one layer is 1, whatever its query.
            weighs = slot > 0 and not (
                products is None and grad_weights is None)
            if weighs:
                if grad_keys is None:  # the last layer that has a gradient
                    grad_keys = torch.zeros_like(keys)
                extra = grad_weights is not None
                dim = keys.shape[-1]
                backward.weigh_backward.launch(
                    keys[0].numel() // dim, alike,
                    (products, grad_weights.contiguous() if extra else None,
                     weights, queries, keys, grad_keys, slot, dim,
                     1 / math.sqrt(dim)),
                    (products is not None, extra, *_by_head(slot, keys)), 1)
            of_pooled, of_key, of_query = _project_backward(
                grad_keys, slot, pooled, key, query, weighs, alike)
            of_x, of_kernel = _value_backward(
                ctx, grad if ctx.plan.adds else None, gradients, of_pooled, x,
                kernel, alike)
        return (of_x if needs[0] else None, grad_keys if needs[1] else None,
                gradients if needs[2] else None, of_key, of_query,
                of_kernel if needs[5] else None, *of_affine, *[None] * 4)


def _by_head(slot: int, keys: Tensor) -> tuple:
    """Return SEEN, DIM and ACC for kernels that take one head of one sample."""
    return (triton.next_power_of_2(slot + 1),
            triton.next_power_of_2(keys.shape[-1]), accumulator(keys))


def _retrieve(plan, x: Tensor, state: Tensor, table: Tensor, number: int,
              slot: int, gamma: Optional[Tensor], beta: Optional[Tensor],
              scale: Optional[Tensor], tracked: List[Tensor],
              alike: tuple) -> Tuple[Optional[Tensor], ...]:
    """Apply equation 5, norm, relu and scale, and add x, as ``plan`` says.

    Returns:
        tuple: The result (B, C, H, W), and the norm's mean and invstd (C), None
        without a norm.
    """
    norm, tiles, channels = plan.norm, streaming(x), x.shape[1]
    along = (state.stride(0), table, number, table.stride(0), slot + 1)
    layout = (tiles.size, plan.head_dim, len(state))
    total = None
    if norm is None or norm.training:
        total = x.new_empty(x.shape, dtype=state.dtype)
        means = squares = None
        if norm is not None:
            means, squares = x.new_empty(
                2, *x.shape[:2], dtype=at_least_float32(x.dtype))  # (B, C)
        forward.retrieve.launch(
            tiles.programs, alike,
            (state, *along, total, means, squares, tiles.planes, *layout),
            (norm is not None, *tiles.constants), tiles.warps)
        if norm is None:
            return total, None, None
        mean, invstd = means.new_empty(2, channels)  # (C)
        forward.join_statistics.launch(
            triton.cdiv(channels, 16), alike,
            (means, squares, mean, invstd, norm.running_mean, norm.running_var,
             len(x), channels, tiles.size, float(norm.momentum),
             float(norm.eps)),
            (triton.next_power_of_2(len(x)), 16), 4)
        tracked.append(norm.num_batches_tracked)
    else:
        mean = norm.running_mean.clone()
        invstd = (norm.running_var + norm.eps).rsqrt()
    out = torch.empty_like(
        x, dtype=torch.promote_types(x.dtype, state.dtype)
        if plan.adds else state.dtype)
    forward.finish.launch(
        tiles.programs, alike,
        (x, state if total is None else total, *along, gamma, beta, mean,
         invstd, scale, out, tiles.planes, channels, *layout),
        (total is None, plan.relu, scale is not None, plan.adds,
         *tiles.constants), tiles.warps)
    return out, mean, invstd


def _retrieve_backward(ctx, grad: Tensor, state: Tensor, of_sum: Tensor,
                       gamma: Optional[Tensor], beta: Optional[Tensor],
                       scale: Optional[Tensor], mean: Optional[Tensor],
                       invstd: Optional[Tensor], alike: tuple):
    """Write the gradient of the sum to ``of_sum``, and return the others.

    Returns:
        tuple: The gradients of gamma, beta and scale (C), None where there is no
        such parameter; and the inner products (B C, n) of the sum's gradient with
        the n values, None for n = 1.
    """
    plan, seen, table = ctx.plan, ctx.slot + 1, ctx.retrievals.weights
    channels, tiles = grad.shape[1], streaming(grad)
    given = (grad, state, state.stride(0), table, ctx.number, table.stride(0),
             seen, gamma, beta, mean, invstd, scale)
    layout = (tiles.planes, channels, tiles.size, plan.head_dim, len(state))
    options = (plan.relu, scale is not None)
    sums, of_affine = None, (None, None, None)
    if plan.norm is not None:
        sums = mean.new_empty(3, len(grad), channels)
        backward.finish_backward.launch(
            tiles.programs, alike, (*given, sums, *layout),
            (*options, *tiles.constants), tiles.warps)
        sums = sums.sum(1)  # (3, C)
        of_beta, of_gamma, of_scale = sums.unbind()
        of_affine = (of_gamma.to(gamma.dtype), of_beta.to(beta.dtype),
                     None if scale is None else of_scale.to(scale.dtype))
    products = None if seen == 1 else grad.new_empty(
        tiles.planes, seen, dtype=at_least_float32(grad.dtype))
    backward.retrieve_backward.launch(
        tiles.programs, alike, (*given, sums, of_sum, products, *layout),
        (plan.norm is not None, ctx.own, *options,
         triton.next_power_of_2(seen), *tiles.constants), tiles.warps)
    return of_affine, products


def _project_backward(grad_keys: Optional[Tensor], slot: int, pooled: Tensor,
                      key: Tensor, query: Optional[Tensor], weighs: bool,
                      alike: tuple) -> Tuple[Optional[Tensor], ...]:
    """Return the gradients of pooled features (B, C), and of key and query.

    A kernel without a gradient gets zeros, not None: DDP waits for the gradient of
    every parameter.
    """
    none = None if query is None else torch.zeros_like(query)
    if grad_keys is None:
        return None, torch.zeros_like(key), none
    (batch, channels), size = pooled.shape, key.shape[-1]
    of_pooled = torch.empty_like(pooled)
    of_kernels = pooled.new_empty(batch, 2, size)
    backward.project_backward.launch(
        batch, alike,
        (grad_keys[slot], pooled, key, query if weighs else key, of_pooled,
         of_kernels, batch, channels),
        (1 + weighs, size, triton.next_power_of_2(channels),
         accumulator(pooled)), 4)
    of_kernels = of_kernels.sum(0).to(key.dtype)[:, None, None]  # (2, 1, 1, k)
    return of_pooled, of_kernels[0], of_kernels[1] if weighs else none


def _value_backward(ctx, beside: Optional[Tensor],
                    gradients: Optional[Tensor], of_pooled: Optional[Tensor],
                    x: Tensor, kernel: Tensor, alike: tuple):
    """Return the gradients of x (B, C, H, W) and the value's kernel (C, 1, 3, 3)."""
    retrievals, channels, tiles = ctx.retrievals, x.shape[1], streaming(x)
    if gradients is None:  # the value was not used
        if of_pooled is None:
            return beside, None
        of_x = (of_pooled / tiles.size)[..., None, None].to(x.dtype).expand(
            x.shape)
        return of_x if beside is None else of_x + beside, None
    table = retrievals.weights
    of_value = torch.empty_like(x, dtype=gradients.dtype)
    backward.sum_up.launch(
        tiles.programs, alike,
        (gradients[ctx.first:], gradients.stride(0), table,
         ctx.slot * table.stride(0) + ctx.first, 1,
         retrievals.count - ctx.first, of_value, tiles.planes, tiles.size,
         ctx.plan.head_dim, len(gradients)), tiles.constants, tiles.warps,
        tiles.across)
    tiles = one_by_one(x)
    of_x = torch.empty_like(x)
    of_kernel = x.new_empty(
        len(x), channels, 9, dtype=at_least_float32(x.dtype))
    backward.project_value_backward.launch(
        tiles.programs, alike,
        (of_value, x, kernel, beside, of_pooled, of_x, of_kernel, tiles.planes,
         channels, tiles.size, *x.shape[2:]),
        (beside is not None, of_pooled is not None, *tiles.constants),
        tiles.warps)
    return of_x, of_kernel.sum(0).view(kernel.shape).to(kernel.dtype)
