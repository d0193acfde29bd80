"""Triton kernels of the contrastive loss.

Legend: x_ND are the embeddings; z_NE the same scaled to length 1, with zeros behind up to E numbers a row, a
multiple of every BLOCK_E: loads for dot products are wide whatever D is. i are the images of a program, as anchors; j
the others that it goes through, a block of logits at a time.
"""

import triton
import triton.language as tl

from mlaan_kernels import launching


@triton.jit
def directions_kernel(x_ND, z_NE, lengths_N, D, E, BLOCK_D: tl.constexpr):
    n = tl.program_id(0).to(tl.int64)
    x_ND += n * D
    z_NE += n * E
    # Scaled by the largest number first: no square is too large or too small for float32.
    largest = tl.zeros((BLOCK_D,), tl.float32)
    for start in range(0, D, BLOCK_D):
        cols = start + tl.arange(0, BLOCK_D)
        largest = tl.maximum(largest, tl.abs(tl.load(x_ND + cols, mask=cols < D, other=0.0).to(tl.float32)))
    size = tl.max(largest, 0)
    directed = size > 0
    size = tl.where(directed, size, 1.0)
    squares = tl.zeros((BLOCK_D,), tl.float32)
    for start in range(0, D, BLOCK_D):
        cols = start + tl.arange(0, BLOCK_D)
        x = tl.load(x_ND + cols, mask=cols < D, other=0.0).to(tl.float32) / size
        squares += x * x
    length = tl.where(directed, tl.sqrt(tl.sum(squares, 0)), 1.0)
    for start in range(0, E, BLOCK_D):
        cols = start + tl.arange(0, BLOCK_D)
        x = tl.load(x_ND + cols, mask=cols < D, other=0.0).to(tl.float32) / size
        tl.store(z_NE + cols, x / length, mask=cols < E)
    tl.store(lengths_N + n, tl.where(directed, size * length, 0.0))


@triton.jit
def _cosines(
    z_NE,
    i,
    j,
    N,
    E,
    BLOCK_I: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_E: tl.constexpr,
    PRECISION: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    from_i = z_NE + i.to(tl.int64)[:, None] * E
    from_j = z_NE + j.to(tl.int64)[:, None] * E
    cosines = tl.zeros((BLOCK_I, BLOCK_J), tl.float32)
    for start in range(0, E, BLOCK_E):
        cols = start + tl.arange(0, BLOCK_E)
        a = tl.load(from_i + cols[None, :], mask=(i < N)[:, None], other=0.0)
        b = tl.load(from_j + cols[None, :], mask=(j < N)[:, None], other=0.0)
        cosines = launching.dot(a, tl.trans(b), cosines, PRECISION, INTERPRETED)
    return cosines


@triton.jit
def anchors_kernel(
    z_NE,
    labels_N,
    logsums_N,
    positives_N,
    losses_N,
    N,
    E,
    sharpness,
    BLOCK_I: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_E: tl.constexpr,
    PRECISION: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    i = tl.program_id(0) * BLOCK_I + tl.arange(0, BLOCK_I)
    labels_i = tl.load(labels_N + i, mask=i < N, other=0)
    largest = tl.full((BLOCK_I,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_I,), tl.float32)
    agreeing = tl.zeros((BLOCK_I,), tl.float32)
    positives = tl.zeros((BLOCK_I,), tl.float32)
    for start in range(0, N, BLOCK_J):
        j = start + tl.arange(0, BLOCK_J)
        logits = _cosines(z_NE, i, j, N, E, BLOCK_I, BLOCK_J, BLOCK_E, PRECISION, INTERPRETED) * sharpness
        other = (i[:, None] != j[None, :]) & (j < N)[None, :]
        positive = other & (labels_i[:, None] == tl.load(labels_N + j, mask=j < N, other=0)[None, :])
        positives += tl.sum(positive.to(tl.float32), 1)
        agreeing += tl.sum(tl.where(positive, logits, 0.0), 1)
        logits = tl.where(other, logits, float("-inf"))
        larger = tl.maximum(largest, tl.max(logits, 1))
        anchor = tl.where(larger == float("-inf"), 0.0, larger)  # nothing yet: no difference of infinities
        total = total * tl.exp(largest - anchor) + tl.sum(tl.exp(logits - anchor[:, None]), 1)
        largest = larger
    logsums = largest + tl.log(total)
    losses = tl.where(positives > 0, logsums - agreeing / tl.maximum(positives, 1.0), 0.0)
    tl.store(logsums_N + i, logsums, mask=i < N)
    tl.store(positives_N + i, positives, mask=i < N)
    tl.store(losses_N + i, losses, mask=i < N)


@triton.jit
def mean_kernel(losses_N, positives_N, loss, share, N, BLOCK_N: tl.constexpr):
    total = tl.zeros((BLOCK_N,), tl.float32)
    anchors = tl.zeros((BLOCK_N,), tl.float32)
    for start in range(0, N, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        total += tl.load(losses_N + n, mask=n < N, other=0.0)
        anchors += (tl.load(positives_N + n, mask=n < N, other=0.0) > 0).to(tl.float32)
    each = 1.0 / tl.maximum(tl.sum(anchors, 0), 1.0)
    tl.store(share, each)
    tl.store(loss, tl.sum(total, 0) * each)


@triton.jit
def _pull(logits, other, positive, logsums, positives):
    """Gradient of an anchor's loss by its logits."""
    likely = tl.where(other, tl.exp(logits - logsums), 0.0)
    wanted = tl.where(positive, 1.0 / tl.maximum(positives, 1.0), 0.0)
    return tl.where(positives > 0, likely - wanted, 0.0)


@triton.jit
def backward_kernel(
    z_NE,
    labels_N,
    lengths_N,
    logsums_N,
    positives_N,
    share,
    grad,
    dx_ND,
    N,
    D,
    E,
    sharpness,
    BLOCK_I: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    i = tl.program_id(0) * BLOCK_I + tl.arange(0, BLOCK_I)
    cols = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    labels_i = tl.load(labels_N + i, mask=i < N, other=0)
    logsums_i = tl.load(logsums_N + i, mask=i < N, other=0.0)
    positives_i = tl.load(positives_N + i, mask=i < N, other=0.0)
    gradient = tl.zeros((BLOCK_I, BLOCK_D), tl.float32)
    along = tl.zeros((BLOCK_I,), tl.float32)
    for start in range(0, N, BLOCK_J):
        j = start + tl.arange(0, BLOCK_J)
        cosines = _cosines(z_NE, i, j, N, E, BLOCK_I, BLOCK_J, BLOCK_E, PRECISION, INTERPRETED)
        logits = cosines * sharpness
        other = (i[:, None] != j[None, :]) & (i < N)[:, None] & (j < N)[None, :]
        positive = other & (labels_i[:, None] == tl.load(labels_N + j, mask=j < N, other=0)[None, :])
        logsums_j = tl.load(logsums_N + j, mask=j < N, other=0.0)
        positives_j = tl.load(positives_N + j, mask=j < N, other=0.0)
        # a cosine stands in two logits: of i with j and of j with i
        pull = _pull(logits, other, positive, logsums_i[:, None], positives_i[:, None])
        pull += _pull(logits, other, positive, logsums_j[None, :], positives_j[None, :])
        along += tl.sum(pull * cosines, 1)
        z = tl.load(
            z_NE + j.to(tl.int64)[:, None] * E + cols[None, :], mask=(j < N)[:, None] & (cols < E)[None, :], other=0.0
        )
        gradient = launching.dot(pull, z, gradient, PRECISION, INTERPRETED)
    row = i.to(tl.int64)[:, None]
    mask = (i < N)[:, None] & (cols < D)[None, :]
    own = tl.load(z_NE + row * E + cols[None, :], mask=mask, other=0.0)
    length = tl.load(lengths_N + i, mask=i < N, other=0.0)[:, None]
    dx = (gradient - own * along[:, None]) * (tl.load(share) * tl.load(grad) * sharpness)
    dx = tl.where(length > 0, dx / tl.where(length > 0, length, 1.0), 0.0)
    tl.store(dx_ND + row * D + cols[None, :], dx.to(dx_ND.dtype.element_ty), mask=mask)
