"""Triton kernels of the forward: statistics, and what they do to a map.

Legend: maps (N, C, H, W) in channels_last are matrices of M = N * H * W rows (one pixel of one image) and C columns.
The rows are S slices of `rows` each, one after the other; a program has the columns of one block, and the rows of one
of T tiles inside one slice. A ReLU has 0 for its floor; -inf leaves it out, so that both are one compiled form.
"""
# pyright: reportPossiblyUnboundVariable=false

import triton
import triton.language as tl


@triton.jit
def statistics_kernel(c_MC, sums_STC, squares_STC, rows, tile, tiles, C, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr):
    part = tl.program_id(0)
    first = part % tiles * tile
    stop = tl.minimum(first + tile, rows)
    cols = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = cols < C
    c_MC += (part // tiles).to(tl.int64) * rows * C
    # Distances from the tile's first value: their squares do not cancel when the mean is far from 0.
    shift = tl.load(c_MC + first.to(tl.int64) * C + cols, mask=inside, other=0.0).to(tl.float32)
    sums = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    squares = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    for start in range(first, stop, BLOCK_M):
        row = start + tl.arange(0, BLOCK_M)
        mask = (row < stop)[:, None] & inside[None, :]
        c = tl.load(c_MC + row.to(tl.int64)[:, None] * C + cols[None, :], mask=mask, other=0.0).to(tl.float32)
        distance = tl.where(mask, c - shift[None, :], 0.0)
        sums += distance
        squares += distance * distance
    count = (stop - first).to(tl.float32)
    total = tl.sum(sums, 0)
    place = part.to(tl.int64) * C + cols
    tl.store(sums_STC + place, total + count * shift, mask=inside)
    tl.store(squares_STC + place, tl.sum(squares, 0) - total * total / count, mask=inside)


@triton.jit
def norm_kernel(
    sums_STC,
    squares_STC,
    weight_C,
    running_mean_C,
    running_var_C,
    mean_SC,
    invstd_SC,
    scale_SC,
    slices,
    rows,
    tile,
    tiles,
    C,
    eps,
    momentum,
    RUNNING: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    cols = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = cols < C
    weight = tl.load(weight_C + cols, mask=inside, other=0.0)
    if RUNNING:
        running_mean = tl.load(running_mean_C + cols, mask=inside, other=0.0).to(tl.float32)
        running_var = tl.load(running_var_C + cols, mask=inside, other=0.0).to(tl.float32)
    for s in range(slices):
        total = tl.zeros((BLOCK_T, BLOCK_C), tl.float32)
        for start in range(0, tiles, BLOCK_T):
            t = start + tl.arange(0, BLOCK_T)
            place = (s * tiles + t)[:, None] * C + cols[None, :]
            total += tl.load(sums_STC + place, mask=(t < tiles)[:, None] & inside[None, :], other=0.0)
        mean = tl.sum(total, 0) / rows
        squares = tl.zeros((BLOCK_T, BLOCK_C), tl.float32)
        for start in range(0, tiles, BLOCK_T):
            t = start + tl.arange(0, BLOCK_T)
            place = (s * tiles + t)[:, None] * C + cols[None, :]
            mask = (t < tiles)[:, None] & inside[None, :]
            count = tl.maximum(tl.minimum(tile, rows - t * tile), 1).to(tl.float32)[:, None]
            distance = tl.load(sums_STC + place, mask=mask, other=0.0) / count - mean[None, :]
            within = tl.load(squares_STC + place, mask=mask, other=0.0)
            squares += tl.where(mask, within + count * distance * distance, 0.0)
        square = tl.sum(squares, 0)
        invstd = 1 / tl.sqrt(square / rows + eps)
        tl.store(mean_SC + s * C + cols, mean, mask=inside)
        tl.store(invstd_SC + s * C + cols, invstd, mask=inside)
        tl.store(scale_SC + s * C + cols, weight * invstd, mask=inside)
        if RUNNING:
            running_mean += momentum * (mean - running_mean)
            running_var += momentum * (square / (rows - 1) - running_var)
    if RUNNING:
        tl.store(running_mean_C + cols, running_mean.to(running_mean_C.dtype.element_ty), mask=inside)
        tl.store(running_var_C + cols, running_var.to(running_var_C.dtype.element_ty), mask=inside)


@triton.jit
def forward_kernel(
    c_MC,
    mean_SC,
    scale_SC,
    bias_C,
    residual_MC,
    residual_mean_SC,
    residual_scale_SC,
    residual_bias_C,
    y_MC,
    pooled_IC,
    rows,
    tile,
    tiles,
    C,
    floor,
    WRITE: tl.constexpr,
    POOL: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """y = max((c - mean) * scale + bias + residual, floor), the residual as it is or normalised too.

    POOL also gives each tile's mean; a tile then is one image.
    """
    part = tl.program_id(0)
    first = part % tiles * tile
    stop = tl.minimum(first + tile, rows)
    s = part // tiles
    cols = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = cols < C
    offset = s.to(tl.int64) * rows * C
    mean = tl.load(mean_SC + s * C + cols, mask=inside, other=0.0)
    scale = tl.load(scale_SC + s * C + cols, mask=inside, other=0.0)
    bias = tl.load(bias_C + cols, mask=inside, other=0.0)
    if residual_mean_SC is not None:
        residual_mean = tl.load(residual_mean_SC + s * C + cols, mask=inside, other=0.0)
        residual_scale = tl.load(residual_scale_SC + s * C + cols, mask=inside, other=0.0)
        bias += tl.load(residual_bias_C + cols, mask=inside, other=0.0)
    sums = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    for start in range(first, stop, BLOCK_M):
        row = start + tl.arange(0, BLOCK_M)
        mask = (row < stop)[:, None] & inside[None, :]
        place = offset + row.to(tl.int64)[:, None] * C + cols[None, :]
        c = tl.load(c_MC + place, mask=mask, other=0.0).to(tl.float32)
        y = (c - mean[None, :]) * scale[None, :] + bias[None, :]
        if residual_MC is not None:
            residual = tl.load(residual_MC + place, mask=mask, other=0.0).to(tl.float32)
            if residual_mean_SC is not None:
                residual = (residual - residual_mean[None, :]) * residual_scale[None, :]
            y += residual
        y = tl.maximum(y, floor, propagate_nan=tl.PropagateNan.ALL)  # as torch.relu: a NaN must not become a 0
        y = y.to(c_MC.dtype.element_ty)
        if WRITE:
            tl.store(y_MC + place, y, mask=mask)
        if POOL:
            sums += tl.where(mask, y.to(tl.float32), 0.0)
    if POOL:
        tl.store(pooled_IC + part.to(tl.int64) * C + cols, tl.sum(sums, 0) / (stop - first), mask=inside)


@triton.jit
def sum_kernel(
    c_MC,
    mean_SC,
    scale_SC,
    bias_C,
    residual_MC,
    residual_mean_SC,
    residual_scale_SC,
    residual_bias_C,
    y_MC,
    pooled_IC,
    rows,
    tile,
    tiles,
    C,
    width,
    MEMBERS: tl.constexpr,
    WRITE: tl.constexpr,
    POOL: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """y = sum over MEMBERS of relu((c - mean) * scale + bias + residual): of as many runs of `width` channels one.

    A plain residual has y's channels, one to be normalised those of c. POOL as in `forward_kernel`.
    """
    part = tl.program_id(0)
    first = part % tiles * tile
    stop = tl.minimum(first + tile, rows)
    s = part // tiles
    out_C = C // MEMBERS
    out_cols = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = out_cols < out_C
    sums = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    for start in range(first, stop, BLOCK_M):
        row = start + tl.arange(0, BLOCK_M)
        mask = (row < stop)[:, None] & inside[None, :]
        row = s.to(tl.int64) * rows + row
        out_place = row[:, None] * out_C + out_cols[None, :]
        y = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
        for member in tl.static_range(MEMBERS):
            cols = (out_cols // width * MEMBERS + member) * width + out_cols % width
            place = row[:, None] * C + cols[None, :]
            z = _normalised(c_MC, mean_SC + s * C, scale_SC + s * C, place, cols, mask, inside)
            z += tl.load(bias_C + cols, mask=inside, other=0.0)[None, :]
            if residual_mean_SC is not None:
                z += _normalised(
                    residual_MC, residual_mean_SC + s * C, residual_scale_SC + s * C, place, cols, mask, inside
                )
                z += tl.load(residual_bias_C + cols, mask=inside, other=0.0)[None, :]
            elif residual_MC is not None:
                z += tl.load(residual_MC + out_place, mask=mask, other=0.0).to(tl.float32)
            y += tl.maximum(z, 0.0, propagate_nan=tl.PropagateNan.ALL)
        y = y.to(c_MC.dtype.element_ty)
        if WRITE:
            tl.store(y_MC + out_place, y, mask=mask)
        if POOL:
            sums += tl.where(mask, y.to(tl.float32), 0.0)
    if POOL:
        tl.store(pooled_IC + part.to(tl.int64) * out_C + out_cols, tl.sum(sums, 0) / (stop - first), mask=inside)


@triton.jit
def _normalised(c_MC, mean_C, scale_C, place, cols, mask, inside):
    c = tl.load(c_MC + place, mask=mask, other=0.0).to(tl.float32)
    mean = tl.load(mean_C + cols, mask=inside, other=0.0)
    scale = tl.load(scale_C + cols, mask=inside, other=0.0)
    return (c - mean[None, :]) * scale[None, :]
