"""Backward kernels: from the gradient of a layer's output to that of x.

A layer's sum is recomputed twice: first to add up what the norm's gradient needs
from all planes, then to compute that gradient.
"""
import triton
import triton.language as tl

from .forward import neighbours, weighted_sum
from .launching import Kernel


@triton.jit
def _of_channels(gamma, beta, mean, invstd, scale, channel, here,
                 SCALED: tl.constexpr, ACC: tl.constexpr):
    """Load the parameters and statistics of the planes' channels."""
    slope = tl.load(gamma + channel, mask=here, other=0).to(ACC)
    shift = tl.load(beta + channel, mask=here, other=0).to(ACC)
    level = tl.load(mean + channel, mask=here, other=0)
    spread = tl.load(invstd + channel, mask=here, other=0)
    factor = slope
    if SCALED:
        factor = tl.load(scale + channel, mask=here, other=0).to(ACC)
    return slope, shift, level, spread, factor


@triton.jit
def _normalized(total, grad, slope, shift, level, invstd, factor,
                RELU: tl.constexpr, SCALED: tl.constexpr):
    """Return the normalised sum, and two gradients, of norm's result and scale."""
    normed = (total - level[:, None]) * invstd[:, None]
    term = normed * slope[:, None] + shift[:, None]
    of_scale = grad
    if SCALED:
        of_scale *= tl.where(term < 0, 0, term) if RELU else term
        grad *= factor[:, None]
    if RELU:
        grad = tl.where(term <= 0, 0, grad)
    return normed, grad, of_scale


@Kernel
def finish_backward(grad, values, stride, table, entry, step, seen, gamma,
                    beta, mean, invstd, scale, sums, planes, channels, size, head_dim,
                    capacity, RELU: tl.constexpr, SCALED: tl.constexpr,
                    PLANES: tl.constexpr, BLOCK: tl.constexpr,
                    ACC: tl.constexpr):
    """Sum up each plane's part of the gradients of beta, gamma and scale.

    grad (B, C, H, W), the gradient of the layer's output; sums (3, B, C), the parts
    in this order. The other arguments are those of the forward kernel ``finish``.
    """
    plane = tl.program_id(0).to(tl.int64) * PLANES + tl.arange(0, PLANES)
    here = plane < planes
    channel = plane % channels
    slope, shift, level, spread, factor = _of_channels(
        gamma, beta, mean, invstd, scale, channel, here, SCALED, ACC)
    weights = table + entry + plane // head_dim * capacity
    of_beta = tl.zeros((PLANES, ), ACC)
    of_gamma = tl.zeros((PLANES, ), ACC)
    of_scale = tl.zeros((PLANES, ), ACC)
    for start in range(0, size, BLOCK):
        at = start + tl.arange(0, BLOCK)
        inside = here[:, None] & (at < size)[None]
        offset = plane[:, None] * size + at[None]
        total = weighted_sum(values + offset, stride, weights, step, seen,
                             inside, here, ACC)
        normed, reached, scaled = _normalized(
            total, tl.load(grad + offset, mask=inside, other=0).to(ACC), slope,
            shift, level, spread, factor, RELU, SCALED)
        of_beta += tl.sum(reached, 1)
        of_gamma += tl.sum(reached * normed, 1)
        if SCALED:
            of_scale += tl.sum(scaled, 1)
    tl.store(sums + plane, of_beta, mask=here)
    tl.store(sums + planes + plane, of_gamma, mask=here)
    tl.store(sums + 2 * planes + plane, of_scale, mask=here)


@Kernel
def retrieve_backward(grad, values, stride, table, entry, step, seen, gamma, beta,
                      mean, invstd, scale, sums, of_sum, products, planes,
                      channels, size, head_dim, capacity, NORM: tl.constexpr,
                      OWN: tl.constexpr, RELU: tl.constexpr,
                      SCALED: tl.constexpr, SEEN: tl.constexpr,
                      PLANES: tl.constexpr, BLOCK: tl.constexpr,
                      ACC: tl.constexpr):
    """Compute the gradient of a sum, and its inner products with the values.

    grad, of_sum (B, C, H, W); sums (3, C), those of :func:`finish_backward` summed
    over samples; products (B C, n), only for n > 1. ``OWN`` tells that the norm used
    the batch's own statistics.
    """
    plane = tl.program_id(0).to(tl.int64) * PLANES + tl.arange(0, PLANES)
    here = plane < planes
    weights = table + entry + plane // head_dim * capacity
    if NORM:
        channel = plane % channels
        slope, shift, level, spread, factor = _of_channels(
            gamma, beta, mean, invstd, scale, channel, here, SCALED, ACC)
        if OWN:
            count = planes // channels * size
            of_mean = tl.load(sums + channel, mask=here, other=0) / count
            of_spread = tl.load(
                sums + channels + channel, mask=here, other=0) / count
    layer = tl.arange(0, SEEN)
    inner = tl.zeros((PLANES, SEEN), ACC)
    for start in range(0, size, BLOCK):
        at = start + tl.arange(0, BLOCK)
        inside = here[:, None] & (at < size)[None]
        offset = plane[:, None] * size + at[None]
        found = tl.load(grad + offset, mask=inside, other=0).to(ACC)
        if NORM:
            total = weighted_sum(values + offset, stride, weights, step, seen,
                                 inside, here, ACC)
            normed, found, _ = _normalized(total, found, slope, shift, level,
                                           spread, factor, RELU, SCALED)
            if OWN:
                found -= of_mean[:, None] + normed * of_spread[:, None]
            found *= (slope * spread)[:, None]
        tl.store(of_sum + offset, found, mask=inside)
        if SEEN > 1:
            value = values + offset
            for i in range(seen):
                part = tl.sum(
                    found * tl.load(value, mask=inside, other=0).to(ACC), 1)
                inner += tl.where(layer[None] == i, part[:, None], 0)
                value += stride
    if SEEN > 1:
        tl.store(products + plane[:, None] * seen + layer[None], inner,
                 mask=here[:, None] & (layer < seen)[None])


@Kernel
def weigh_backward(products, extra, weights, queries, keys, grad_keys, slot,
                   head_dim, scale, PRODUCTS: tl.constexpr,
                   EXTRA: tl.constexpr, SEEN: tl.constexpr,
                   DIM: tl.constexpr, ACC: tl.constexpr):
    """Compute the gradients of equation 4 for one head of one sample.

    products (B C, n), inner products of the sum's gradient with the values; extra
    (B, h, n), the gradient of P from elsewhere; weights (B, h, n); queries
    (B, h, d); keys, grad_keys (T + 1, B, h, d). In grad_keys, n rows are added to,
    and the row after them takes the query's gradient.
    """
    row, rows = tl.program_id(0), tl.num_programs(0)
    layer, place = tl.arange(0, SEEN), tl.arange(0, DIM)
    exists, seen = place < head_dim, layer <= slot
    grad = tl.zeros((SEEN, ), ACC)
    if PRODUCTS:
        grad += tl.sum(tl.load(
            products + (row * head_dim + place[None]) * (slot + 1) +
            layer[:, None], mask=seen[:, None] & exists[None], other=0), 1)
    if EXTRA:
        grad += tl.load(extra + row * (slot + 1) + layer, mask=seen,
                        other=0).to(ACC)
    found = tl.load(weights + row * (slot + 1) + layer, mask=seen, other=0)
    grad = found * (grad - tl.sum(found * grad, 0)) * scale
    offset = (layer[:, None] * rows + row) * head_dim + place[None]
    inside = seen[:, None] & exists[None]
    query = tl.load(queries + row * head_dim + place, mask=exists, other=0)
    of_query = tl.sum(
        grad[:, None] * tl.load(keys + offset, mask=inside, other=0), 0)
    tl.store(grad_keys + offset,
             tl.load(grad_keys + offset, mask=inside, other=0) +
             grad[:, None] * query[None], mask=inside)
    tl.store(grad_keys + ((slot + 1) * rows + row) * head_dim + place, of_query,
             mask=exists)


@Kernel
def project_backward(grads, pooled, key, query, of_pooled, of_kernels, rows,
                     channels, COUNT: tl.constexpr, KERNEL: tl.constexpr,
                     CHANNELS: tl.constexpr, ACC: tl.constexpr):
    """Compute the gradients of pooled features and of both kernels, for one sample.

    grads (2, B, C), the gradients of key and query; pooled, of_pooled (B, C);
    of_kernels (B, 2, k).
    """
    sample = tl.program_id(0)
    channel = tl.arange(0, CHANNELS)
    total = tl.zeros((CHANNELS, ), ACC)
    pooled += sample * channels
    for which in tl.static_range(COUNT):
        grad = grads + (which * rows + sample) * channels
        kernel = key
        if which == 1:
            kernel = query
        for tap in tl.static_range(KERNEL):
            seen = channel + tap - KERNEL // 2
            around = channel - tap + KERNEL // 2
            own = tl.load(grad + channel, mask=channel < channels, other=0)
            tl.store(
                of_kernels + (sample * 2 + which) * KERNEL + tap,
                tl.sum(own * tl.load(
                    pooled + seen, mask=(channel < channels) & (seen >= 0) &
                    (seen < channels), other=0), 0))
            total += tl.load(kernel + tap).to(ACC) * tl.load(
                grad + around, mask=(channel < channels) & (around >= 0) &
                (around < channels), other=0)
    tl.store(of_pooled + sample * channels + channel, total,
             mask=channel < channels)


@Kernel
def sum_up(maps, stride, table, entry, step, count, out, planes, size, head_dim,
           capacity, PLANES: tl.constexpr, BLOCK: tl.constexpr,
           ACC: tl.constexpr):
    """Compute the gradient of a value: a sum over the layers that retrieved it.

    maps (n, B, C, H, W), the gradients of these layers' sums; out (B, C, H, W).
    """
    plane = tl.program_id(0).to(tl.int64) * PLANES + tl.arange(0, PLANES)
    here = plane < planes
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = here[:, None] & (at < size)[None]
    offset = plane[:, None] * size + at[None]
    tl.store(out + offset, weighted_sum(
        maps + offset, stride, table + entry + plane // head_dim * capacity,
        step, count, inside, here, ACC), mask=inside)


@Kernel
def project_value_backward(grad, x, kernel, beside, of_pooled, of_x, of_kernel,
                           planes, channels, size, height, width,
                           BESIDE: tl.constexpr, POOLED: tl.constexpr,
                           PLANES: tl.constexpr, BLOCK: tl.constexpr,
                           ACC: tl.constexpr):
    """Compute the complete gradient of x, and that of the value's kernel.

    grad, x, of_x (B, C, H, W); beside (B, C, H, W), the gradient that bypasses
    attention; kernel (C, 3, 3); of_pooled (B, C), the gradient of the pooled
    features; of_kernel (B, C, 9).
    """
    plane = tl.program_id(0).to(tl.int64) * PLANES + tl.arange(0, PLANES)
    here = plane < planes
    taps = kernel + plane % channels * 9
    ninth = tl.arange(0, 16)
    of_taps = tl.zeros((PLANES, 16), ACC)
    share = tl.zeros((PLANES, ), ACC)
    if POOLED:
        share += tl.load(of_pooled + plane, mask=here, other=0) / size
    for start in range(0, size, BLOCK):
        at = start + tl.arange(0, BLOCK)
        column = at % width
        inside = here[:, None] & (at < size)[None]
        offset = plane[:, None] * size + at[None]
        own = tl.load(grad + offset, mask=inside, other=0).to(ACC)
        total = tl.zeros((PLANES, BLOCK), ACC) + share[:, None]
        if BESIDE:
            total += tl.load(beside + offset, mask=inside, other=0).to(ACC)
        for tap in tl.static_range(9):
            moved = at + (tap // 3 - 1) * width + tap % 3 - 1
            seen = here[:, None] & neighbours(
                moved, column, width, size, tap % 3 - 1)[None]
            moved = plane[:, None] * size + moved[None]
            part = tl.sum(
                own * tl.load(x + moved, mask=seen, other=0).to(ACC), 1)
            of_taps += tl.where(ninth[None] == tap, part[:, None], 0)
            # This position reached its neighbour through the opposite tap.
            total += tl.load(taps + 8 - tap, mask=here, other=0).to(ACC)[
                :, None] * tl.load(grad + moved, mask=seen, other=0).to(ACC)
        tl.store(of_x + offset, total, mask=inside)
    tl.store(of_kernel + plane[:, None] * 9 + ninth[None], of_taps,
             mask=here[:, None] & (ninth < 9)[None])
