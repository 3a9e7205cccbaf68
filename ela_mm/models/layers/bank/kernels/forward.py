"""Forward kernels: value and average, attention weights, the sum, norm and relu."""
import triton
import triton.language as tl

from .launching import Kernel


@triton.jit
def neighbours(moved, column, width, size, right: tl.constexpr):
    """Return a mask of the positions whose neighbour ``moved`` is within the map.

    ``right`` is the neighbour's column minus the position's: -1, 0 or 1.
    """
    seen = (moved >= 0) & (moved < size)
    if right == -1:
        seen &= column > 0
    if right == 1:
        seen &= column < width - 1
    return seen


@Kernel
def project_value(x, kernel, value, pooled, planes, channels, size, height,
                  width, PLANES: tl.constexpr, BLOCK: tl.constexpr,
                  ACC: tl.constexpr):
    """Convolve each channel by its 3 x 3 kernel, and average each plane.

    x, value (B, C, H, W); kernel (C, 3, 3); pooled (B, C).
    """
    plane = tl.program_id(0).to(tl.int64) * PLANES + tl.arange(0, PLANES)
    here = plane < planes
    taps = kernel + plane % channels * 9
    sums = tl.zeros((PLANES, ), ACC)
    for start in range(0, size, BLOCK):
        at = start + tl.arange(0, BLOCK)
        column = at % width
        total = tl.zeros((PLANES, BLOCK), ACC)
        for tap in tl.static_range(9):
            moved = at + (tap // 3 - 1) * width + tap % 3 - 1
            seen = tl.load(
                x + plane[:, None] * size + moved[None], other=0,
                mask=here[:, None] & neighbours(
                    moved, column, width, size, tap % 3 - 1)[None]).to(ACC)
            weight = tl.load(taps + tap, mask=here, other=0).to(ACC)
            total += weight[:, None] * seen
            if tap == 4:  # the middle
                sums += tl.sum(seen, 1)
        tl.store(value + plane[:, None] * size + at[None], total,
                 mask=here[:, None] & (at < size)[None])
    tl.store(pooled + plane, sums / size, mask=here)


@Kernel
def weigh(pooled, key, query, keys, queries, weights, table, slot, number,
          capacity, heads, head_dim, scale, ATTENDS: tl.constexpr,
          KERNEL: tl.constexpr, SEEN: tl.constexpr, DIM: tl.constexpr,
          ACC: tl.constexpr):
    """Apply equation 4 to one head of one sample: P = softmax(q k^T scale).

    pooled (B, C); key, query (k); keys (T + 1, B, h, d), of which row ``slot`` is
    written; queries (B, h, d); weights (B, h, n); table (T, B, h, T), indexed by
    value and retrieval.
    """
    row, rows = tl.program_id(0), tl.num_programs(0)  # rows = B h
    channels = heads * head_dim
    first = row % heads * head_dim
    place = tl.arange(0, DIM)
    exists = place < head_dim
    own_key = tl.zeros((DIM, ), ACC)
    own_query = tl.zeros((DIM, ), ACC)
    for tap in tl.static_range(KERNEL):
        channel = first + place + tap - KERNEL // 2
        seen = tl.load(
            pooled + row // heads * channels + channel,
            mask=exists & (channel >= 0) & (channel < channels), other=0)
        own_key += tl.load(key + tap).to(ACC) * seen
        if ATTENDS:
            own_query += tl.load(query + tap).to(ACC) * seen
    tl.store(keys + (slot * rows + row) * head_dim + place, own_key,
             mask=exists)
    if ATTENDS:
        tl.store(queries + row * head_dim + place, own_query, mask=exists)
        layer = tl.arange(0, SEEN)
        earlier = tl.load(
            keys + (layer[:, None] * rows + row) * head_dim + place[None],
            mask=(layer < slot)[:, None] & exists[None], other=0)
        logits = tl.sum(earlier * own_query[None], 1)
        logits = tl.where(layer == slot, tl.sum(own_key * own_query, 0),
                          logits) * scale
        logits = tl.where(layer <= slot, logits, float('-inf'))  # padding
        power = tl.exp(logits - tl.max(logits, 0))
        found = power / tl.sum(power, 0)
        tl.store(weights + row * (slot + 1) + layer, found, mask=layer <= slot)
        tl.store(table + (layer * rows + row) * capacity + number, found,
                 mask=layer <= slot)


@triton.jit
def weighted_sum(maps, stride, weights, step, count, inside, here,
                 ACC: tl.constexpr):
    """Sum tiles of maps, each times a weight per plane.

    There are ``count`` tiles, ``stride`` apart; their weights are ``step`` apart.
    """
    total = tl.zeros(inside.shape, ACC)
    for _ in range(count):
        weight = tl.load(weights, mask=here, other=0).to(ACC)
        total += weight[:, None] * tl.load(maps, mask=inside, other=0).to(ACC)
        maps += stride
        weights += step
    return total.to(maps.dtype.element_ty).to(ACC)  # rounded as if stored


@Kernel
def retrieve(values, stride, table, entry, step, seen, retrieved, means,
             squares, planes, size, head_dim, capacity, MEASURES: tl.constexpr,
             PLANES: tl.constexpr, BLOCK: tl.constexpr, ACC: tl.constexpr):
    """Apply equation 5, and measure each plane's mean and squared deviations.

    values (n, B, C, H, W), ``stride`` apart; table (T, B, h, T), in which a plane's
    weights begin at ``entry`` and are ``step`` apart; retrieved (B, C, H, W);
    means, squares (B, C), where squares are sums of squared deviations.
    """
    plane = tl.program_id(0).to(tl.int64) * PLANES + tl.arange(0, PLANES)
    here = plane < planes
    weights = table + entry + plane // head_dim * capacity
    mean = tl.zeros((PLANES, ), ACC)
    square = tl.zeros((PLANES, ), ACC)
    for start in range(0, size, BLOCK):
        at = start + tl.arange(0, BLOCK)
        inside = here[:, None] & (at < size)[None]
        offset = plane[:, None] * size + at[None]
        total = weighted_sum(values + offset, stride, weights, step, seen,
                             inside, here, ACC)
        tl.store(retrieved + offset, total, mask=inside)
        if MEASURES:  # merged block by block (Chan et al., 1979)
            count = tl.minimum(size - start, BLOCK).to(ACC)
            new = tl.sum(total, 1) / count
            around = tl.where(inside, total - new[:, None], 0)
            beside = new - mean
            share = count / (start + count)
            square += tl.sum(around * around, 1) + (
                beside * beside * share * start)
            mean += beside * share
    if MEASURES:
        tl.store(means + plane, mean, mask=here)
        tl.store(squares + plane, square, mask=here)


@Kernel
def join_statistics(means, squares, mean, invstd, running_mean, running_var,
                    batch, channels, size, momentum, eps, BATCH: tl.constexpr,
                    CHANNELS: tl.constexpr):
    """Combine the planes' statistics into those of a channel, as batch norm does.

    means, squares (B, C); mean, invstd, and the running statistics, which are
    updated, (C).
    """
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    sample = tl.arange(0, BATCH)
    exists = channel < channels
    inside = (sample < batch)[:, None] & exists[None]
    offset = sample[:, None] * channels + channel[None]
    of_planes = tl.load(means + offset, mask=inside, other=0)
    average = tl.sum(of_planes, 0) / batch
    around = tl.where(inside, of_planes - average[None], 0)
    total = tl.sum(tl.load(squares + offset, mask=inside, other=0), 0) + (
        size * tl.sum(around * around, 0))
    count = batch * size
    tl.store(mean + channel, average, mask=exists)
    tl.store(invstd + channel, 1 / tl.sqrt(total / count + eps), mask=exists)
    old = tl.load(running_mean + channel, mask=exists, other=0)
    tl.store(running_mean + channel, old + (average - old) * momentum,
             mask=exists)
    old = tl.load(running_var + channel, mask=exists, other=0)
    tl.store(running_var + channel,
             old + (total / (count - 1) - old) * momentum, mask=exists)


@Kernel
def finish(x, values, stride, table, entry, step, seen, gamma, beta, mean,
           invstd, scale, out, planes, channels, size, head_dim, capacity,
           RETRIEVES: tl.constexpr, RELU: tl.constexpr, SCALED: tl.constexpr,
           ADDS: tl.constexpr, PLANES: tl.constexpr, BLOCK: tl.constexpr,
           ACC: tl.constexpr):
    """Apply norm, relu and scale to a sum, and add x: (B, C, H, W).

    With ``RETRIEVES`` the sum is formed here, as in :func:`retrieve`; otherwise
    ``values`` is the sum.
    """
    plane = tl.program_id(0).to(tl.int64) * PLANES + tl.arange(0, PLANES)
    here = plane < planes
    channel = plane % channels
    slope = tl.load(gamma + channel, mask=here, other=0).to(ACC) * tl.load(
        invstd + channel, mask=here, other=0)
    level = tl.load(mean + channel, mask=here, other=0)
    shift = tl.load(beta + channel, mask=here, other=0).to(ACC)
    if SCALED:
        factor = tl.load(scale + channel, mask=here, other=0).to(ACC)
    weights = table + entry + plane // head_dim * capacity
    for start in range(0, size, BLOCK):
        at = start + tl.arange(0, BLOCK)
        inside = here[:, None] & (at < size)[None]
        offset = plane[:, None] * size + at[None]
        if RETRIEVES:
            total = weighted_sum(values + offset, stride, weights, step, seen,
                                 inside, here, ACC)
        else:
            total = tl.load(values + offset, mask=inside, other=0).to(ACC)
        term = (total - level[:, None]) * slope[:, None] + shift[:, None]
        if RELU:
            term = tl.where(term < 0, 0, term)  # keeps NaN
        if SCALED:
            term *= factor[:, None]
        if ADDS:
            term += tl.load(x + offset, mask=inside, other=0).to(ACC)
        tl.store(out + offset, term, mask=inside)
