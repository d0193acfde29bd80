"""Kernels of the gradients. softmax - target is rebuilt from the logits in each, and never stored.

Shape suffixes: N images, C channels, F features, L heads, V classes, S classes with the padding of a logits row.
One head is one index of grid axis 1. Grids are cut for the smallest tiles; with larger ones some programs are left
without work.
"""

import triton
import triton.language as tl

from mlaan_kernels import launching
from mlaan_kernels.pool_linear_ce.tiles import tuned


@triton.jit
def residual(logits_LNS, peaks_LN, inverses_LN, labels_N, head, n, v, smoothing, N, V, S, SOFT: tl.constexpr):
    """softmax - target for images n and classes v, (N, V); 0 outside. Padding is -inf, so only rows need a mask.

    SOFT: `logits_LNS` holds it already.
    """
    row, inside = head * N + n, n < N
    if SOFT:
        return tl.load(logits_LNS + row[:, None] * S + v[None, :], mask=inside[:, None], other=0.0)
    logit = tl.load(logits_LNS + row[:, None] * S + v[None, :], mask=inside[:, None], other=float("-inf"))
    peak = tl.load(peaks_LN + row, mask=inside, other=0.0)
    inverse = tl.load(inverses_LN + row, mask=inside, other=0.0)
    label = tl.load(labels_N + n, mask=inside, other=-1)
    target = tl.where(v[None, :] == label[:, None], 1 - smoothing, 0.0) + smoothing / V
    softmax = tl.exp(logit - peak[:, None]) * inverse[:, None]
    return tl.where(inside[:, None] & (v < V)[None, :], softmax - target, 0.0)


@triton.jit
def _pooled_gradient(
    logits_LNS,
    peaks_LN,
    inverses_LN,
    labels_N,
    weights_LVC,
    scales_L,
    pooled_grads_LNC,
    smoothing,
    N,
    V,
    C,
    S,
    SOFT: tl.constexpr,
    LIFT: tl.constexpr,
    BLOCK_V: tl.constexpr,
    PRECISION: tl.constexpr,
    INTERPRETED: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """scale * (softmax - target) @ weight; one program per tile of images and channels."""
    blocks_C = tl.cdiv(C, BLOCK_C)
    tile = tl.program_id(0)
    if tile >= tl.cdiv(N, BLOCK_N) * blocks_C:
        return
    head = tl.program_id(1).to(tl.int64)
    n = (tile // blocks_C) * BLOCK_N + tl.arange(0, BLOCK_N)
    c = (tile % blocks_C) * BLOCK_C + tl.arange(0, BLOCK_C)
    acc = tl.zeros((BLOCK_N, BLOCK_C), tl.float32)
    for start in range(0, V, BLOCK_V):
        v = start + tl.arange(0, BLOCK_V)
        r = residual(logits_LNS, peaks_LN, inverses_LN, labels_N, head, n, v, smoothing, N, V, S, SOFT)
        w = tl.load(
            weights_LVC + (head * V + v[:, None]) * C + c[None, :], mask=(v < V)[:, None] & (c < C)[None, :], other=0.0
        )
        acc = launching.dot((r * LIFT).to(w.dtype), w, acc, PRECISION, INTERPRETED)
    acc *= tl.load(scales_L + head) / LIFT
    inside = (n < N)[:, None] & (c < C)[None, :]
    tl.store(pooled_grads_LNC + (head * N + n[:, None]) * C + c[None, :], acc, mask=inside)


pooled_gradient = tuned(
    _pooled_gradient,
    [
        triton.Config({"BLOCK_N": 64, "BLOCK_C": 64}, num_warps=4, num_stages=3),
        triton.Config({"BLOCK_N": 64, "BLOCK_C": 128}, num_warps=8, num_stages=3),
    ],
    [triton.Config({"BLOCK_N": 64, "BLOCK_C": 64}, num_warps=8, num_stages=2)],
)


@triton.jit
def _weight_gradient(
    logits_LNS,
    peaks_LN,
    inverses_LN,
    labels_N,
    pooled_FNC,
    taps_L,
    scales_L,
    weight_grads_LVC,
    bias_grads_LV,
    smoothing,
    N,
    V,
    C,
    S,
    SOFT: tl.constexpr,
    LIFT: tl.constexpr,
    BLOCK_V: tl.constexpr,
    PRECISION: tl.constexpr,
    INTERPRETED: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """scale * (softmax - target)^T @ pooled and the sum for the biases; one program per tile of classes and channels.

    The tile is computed transposed, pooled^T @ (softmax - target): classes may be as few as 16 then, channels fill the
    64 rows that a Hopper product has at least.
    """
    blocks_C = tl.cdiv(C, BLOCK_C)
    tile = tl.program_id(0)
    if tile >= tl.cdiv(V, BLOCK_V) * blocks_C:
        return
    head = tl.program_id(1).to(tl.int64)
    tap = tl.load(taps_L + head).to(tl.int64)
    v = (tile // blocks_C) * BLOCK_V + tl.arange(0, BLOCK_V)
    c = (tile % blocks_C) * BLOCK_C + tl.arange(0, BLOCK_C)
    acc = tl.zeros((BLOCK_C, BLOCK_V), tl.float32)
    bias = tl.zeros((BLOCK_V,), tl.float32)
    for start in range(0, N, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        r = residual(logits_LNS, peaks_LN, inverses_LN, labels_N, head, n, v, smoothing, N, V, S, SOFT)
        x = tl.load(
            pooled_FNC + (tap * N + n[None, :]) * C + c[:, None], mask=(c < C)[:, None] & (n < N)[None, :], other=0.0
        )
        acc = launching.dot(x, (r * LIFT).to(x.dtype), acc, PRECISION, INTERPRETED)
        bias += tl.sum(r, 0)
    scale = tl.load(scales_L + head)
    inside = (c < C)[:, None] & (v < V)[None, :]
    tl.store(weight_grads_LVC + (head * V + v[None, :]) * C + c[:, None], acc * (scale / LIFT), mask=inside)
    if tile % blocks_C == 0:
        tl.store(bias_grads_LV + head * V + v, bias * scale, mask=v < V)


weight_gradient = tuned(
    _weight_gradient,
    [
        triton.Config({"BLOCK_N": 32, "BLOCK_C": 64}, num_warps=4, num_stages=3),
        triton.Config({"BLOCK_N": 64, "BLOCK_C": 128}, num_warps=8, num_stages=3),
    ],
    [triton.Config({"BLOCK_N": 16, "BLOCK_C": 64}, num_warps=8, num_stages=2)],
)
