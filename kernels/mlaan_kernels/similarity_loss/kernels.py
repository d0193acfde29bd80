"""Triton kernels of similarity matching.

Legend: x_NPC is a map (N, C, H, W) in channels_last, P = H * W pixels of an image; rows_NR the N rows that are
compared, R numbers each: of standard deviations R = C. directions_NE are the rows centred and scaled to length 1, with
zeros behind up to E numbers, and errors_NM (image i, image j) have zeros behind up to M: loads for dot products are
wide whatever R and N are.
"""

import triton
import triton.language as tl

from mlaan_kernels import launching


@triton.jit
def moments_kernel(x_NPC, mean_NC, std_NC, P, C, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr):
    n = tl.program_id(0).to(tl.int64)
    cols = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = cols < C
    lane = tl.arange(0, BLOCK_P)
    x_NPC += n * P * C
    # Distances from the first pixel: a distant mean costs no digits, and equal pixels have a deviation of exactly 0.
    origin = tl.load(x_NPC + cols, mask=inside, other=0.0).to(tl.float32)
    # Each lane keeps the mean and the squared distances of its own pixels (Welford): nothing cancels.
    mean = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    squares = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    for start in range(0, P, BLOCK_P):
        pixel = start + lane
        mask = (pixel < P)[:, None] & inside[None, :]
        x = tl.load(x_NPC + pixel.to(tl.int64)[:, None] * C + cols[None, :], mask=mask, other=0.0).to(tl.float32)
        x -= origin[None, :]
        distance = tl.where(mask, x - mean, 0.0)
        mean += distance * (1.0 / (start // BLOCK_P + 1))
        squares += distance * tl.where(mask, x - mean, 0.0)
    count = ((P - lane + BLOCK_P - 1) // BLOCK_P).to(tl.float32)[:, None]
    whole = tl.sum(count * mean, 0) / P
    apart = mean - whole[None, :]
    variance = (tl.sum(squares, 0) + tl.sum(count * apart * apart, 0)) / (P - 1)
    place = n * C + cols
    tl.store(mean_NC + place, origin + whole, mask=inside)
    tl.store(std_NC + place, tl.sqrt(variance), mask=inside)


@triton.jit
def directions_kernel(rows_NR, directions_NE, inverse_N, R, E, rounding, BLOCK_R: tl.constexpr):
    n = tl.program_id(0).to(tl.int64)
    rows_NR += n * R
    directions_NE += n * E
    # Distances from the first number: equal numbers have a mean that is them, to the last digit.
    first = tl.load(rows_NR).to(tl.float32)
    sums = tl.zeros((BLOCK_R,), tl.float32)
    squares = tl.zeros((BLOCK_R,), tl.float32)
    for start in range(0, R, BLOCK_R):
        cols = start + tl.arange(0, BLOCK_R)
        row = tl.load(rows_NR + cols, mask=cols < R, other=0.0).to(tl.float32)
        sums += tl.where(cols < R, row - first, 0.0)
        squares += row * row
    mean = first + tl.sum(sums, 0) / R
    around = tl.zeros((BLOCK_R,), tl.float32)
    for start in range(0, R, BLOCK_R):
        cols = start + tl.arange(0, BLOCK_R)
        row = tl.load(rows_NR + cols, mask=cols < R, other=0.0).to(tl.float32)
        centred = tl.where(cols < R, row - mean, 0.0)
        around += centred * centred
    length = tl.sqrt(tl.sum(around, 0))
    directed = length > rounding * tl.sqrt(tl.sum(squares, 0))
    inverse = tl.where(directed, 1.0 / tl.where(directed, length, 1.0), 0.0)
    for start in range(0, E, BLOCK_R):
        cols = start + tl.arange(0, BLOCK_R)
        row = tl.load(rows_NR + cols, mask=cols < R, other=0.0).to(tl.float32)
        direction = tl.where(directed, (row - mean) * inverse, 0.0)
        tl.store(directions_NE + cols, tl.where(cols < R, direction, 0.0), mask=cols < E)
    tl.store(inverse_N + n, inverse)


@triton.jit
def _label_cosine(labels_i, labels_j, same, others):
    return tl.where(labels_i[:, None] == labels_j[None, :], same, others)


@triton.jit
def errors_kernel(
    directions_NE,
    labels_N,
    errors_NM,
    sums_T,
    N,
    M,
    E,
    same,
    others,
    BLOCK_I: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_E: tl.constexpr,
    PRECISION: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    i = tl.program_id(0) * BLOCK_I + tl.arange(0, BLOCK_I)
    j = tl.program_id(1) * BLOCK_J + tl.arange(0, BLOCK_J)
    from_i = directions_NE + i.to(tl.int64)[:, None] * E
    from_j = directions_NE + j.to(tl.int64)[:, None] * E
    cosines = tl.zeros((BLOCK_I, BLOCK_J), tl.float32)
    for start in range(0, E, BLOCK_E):
        cols = start + tl.arange(0, BLOCK_E)
        a = tl.load(from_i + cols[None, :], mask=(i < N)[:, None], other=0.0)
        b = tl.load(from_j + cols[None, :], mask=(j < N)[:, None], other=0.0)
        cosines = launching.dot(a, tl.trans(b), cosines, PRECISION, INTERPRETED)
    labels_i = tl.load(labels_N + i, mask=i < N, other=0)
    labels_j = tl.load(labels_N + j, mask=j < N, other=0)
    mask = (i < N)[:, None] & (j < N)[None, :]
    errors = tl.where(mask, cosines - _label_cosine(labels_i, labels_j, same, others), 0.0)
    tl.store(errors_NM + i.to(tl.int64)[:, None] * M + j[None, :], errors, mask=(i < N)[:, None])
    tile = tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
    tl.store(sums_T + tile, tl.sum(tl.sum(errors * errors, 1), 0))


@triton.jit
def slopes_kernel(
    errors_NM,
    directions_NE,
    labels_N,
    inverse_N,
    std_NR,
    slopes_NR,
    N,
    M,
    E,
    R,
    same,
    others,
    scale,
    BLOCK_I: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_R: tl.constexpr,
    PRECISION: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    i = tl.program_id(0) * BLOCK_I + tl.arange(0, BLOCK_I)
    cols = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    labels_i = tl.load(labels_N + i, mask=i < N, other=0)
    gradient = tl.zeros((BLOCK_I, BLOCK_R), tl.float32)
    along = tl.zeros((BLOCK_I,), tl.float32)
    for start in range(0, N, BLOCK_J):
        j = start + tl.arange(0, BLOCK_J)
        errors = tl.load(errors_NM + i.to(tl.int64)[:, None] * M + j[None, :], mask=(i < N)[:, None], other=0.0)
        labels_j = tl.load(labels_N + j, mask=j < N, other=0)
        along += tl.sum(errors * (errors + _label_cosine(labels_i, labels_j, same, others)), 1)
        directions = tl.load(
            directions_NE + j.to(tl.int64)[:, None] * E + cols[None, :],
            mask=(j < N)[:, None] & (cols < E)[None, :],
            other=0.0,
        )
        gradient = launching.dot(errors, directions, gradient, PRECISION, INTERPRETED)
    mask = (i < N)[:, None] & (cols < R)[None, :]
    own = tl.load(directions_NE + i.to(tl.int64)[:, None] * E + cols[None, :], mask=mask, other=0.0)
    place = i.to(tl.int64)[:, None] * R + cols[None, :]
    inverse = tl.load(inverse_N + i, mask=i < N, other=0.0)
    slopes = (gradient - own * along[:, None]) * (inverse * scale)[:, None]
    if std_NR is not None:
        std = tl.load(std_NR + place, mask=mask, other=0.0)
        slopes = tl.where(std > 0, slopes / tl.where(std > 0, std, 1.0), 0.0)
    tl.store(slopes_NR + place, slopes, mask=mask)


@triton.jit
def backward_kernel(x_NPC, mean_NC, slopes_NC, grad, dx_NPC, P, C, tiles, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr):
    n = (tl.program_id(0) // tiles).to(tl.int64)
    pixel = tl.program_id(0) % tiles * BLOCK_P + tl.arange(0, BLOCK_P)
    cols = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = cols < C
    mean = tl.load(mean_NC + n * C + cols, mask=inside, other=0.0)
    slopes = tl.load(slopes_NC + n * C + cols, mask=inside, other=0.0) * tl.load(grad)
    place = n * P * C + pixel.to(tl.int64)[:, None] * C + cols[None, :]
    mask = (pixel < P)[:, None] & inside[None, :]
    x = tl.load(x_NPC + place, mask=mask, other=0.0).to(tl.float32)
    dx = slopes[None, :] * (x - mean[None, :])
    tl.store(dx_NPC + place, dx.to(dx_NPC.dtype.element_ty), mask=mask)
