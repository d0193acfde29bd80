"""Kernels of the pool, the logits and what follows from them.

Shape suffixes: N images, P pixels or tokens of one image, C channels, F features, L heads, V classes, S classes with
the padding of a logits row, B blocks of BLOCK_V classes in it. One head is one index of grid axis 1, except in `pool`.
"""

import triton
import triton.language as tl

from mlaan_kernels import launching
from mlaan_kernels.pool_linear_ce.tiles import tuned


@triton.jit
def pool(x_NPC, pooled_NC, P, C, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr):
    """Mean over P; one program per image and block of channels."""
    n = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    acc = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    for start in range(0, P, BLOCK_P):
        p = start + tl.arange(0, BLOCK_P)
        x = tl.load(x_NPC + (n * P + p[:, None]) * C + c[None, :], mask=(p < P)[:, None] & (c < C)[None, :], other=0.0)
        acc += x.to(tl.float32)
    mean = tl.sum(acc, 0) / P
    tl.store(pooled_NC + n * C + c, mean.to(pooled_NC.dtype.element_ty), mask=c < C)


@triton.jit
def _logits(
    pooled_FNC,
    weights_LVC,
    biases_LV,
    taps_L,
    logits_LNS,
    peaks_LNB,
    sums_LNB,
    gaps_LNB,
    N,
    V,
    C,
    S,
    HAS_BIAS: tl.constexpr,
    BLOCK_V: tl.constexpr,
    PRECISION: tl.constexpr,
    INTERPRETED: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Logits, -inf in the padding; of each block of classes maximum, sum of exp(logit - maximum), sum of gaps to it.

    One program per tile of images and classes. The grid is cut for the smallest tiles; with larger ones some programs
    are left without work.
    """
    blocks_N = tl.cdiv(N, BLOCK_N)
    B = S // BLOCK_V
    tile = tl.program_id(0)
    if tile >= blocks_N * B:
        return
    head = tl.program_id(1).to(tl.int64)
    tap = tl.load(taps_L + head).to(tl.int64)
    block = tile // blocks_N  # images innermost: neighbours read the same weights
    n = (tile % blocks_N) * BLOCK_N + tl.arange(0, BLOCK_N)
    v = block * BLOCK_V + tl.arange(0, BLOCK_V)
    inside_N, inside_V = n < N, v < V
    x_rows = pooled_FNC + (tap * N + n[:, None]) * C
    w_columns = weights_LVC + (head * V + v[None, :]) * C
    acc = tl.zeros((BLOCK_N, BLOCK_V), tl.float32)
    for start in range(0, C, BLOCK_C):
        c = start + tl.arange(0, BLOCK_C)
        x = tl.load(x_rows + c[None, :], mask=inside_N[:, None] & (c < C)[None, :], other=0.0)
        w = tl.load(w_columns + c[:, None], mask=(c < C)[:, None] & inside_V[None, :], other=0.0)
        acc = launching.dot(x, w, acc, PRECISION, INTERPRETED)
    if HAS_BIAS:
        acc += tl.load(biases_LV + head * V + v, mask=inside_V, other=0.0)[None, :]
    acc = tl.where(inside_V[None, :], acc, float("-inf"))
    row = head * N + n
    tl.store(logits_LNS + row[:, None] * S + v[None, :], acc, mask=inside_N[:, None])
    peak = tl.max(acc, 1)
    tl.store(peaks_LNB + row * B + block, peak, mask=inside_N)
    tl.store(sums_LNB + row * B + block, tl.sum(tl.exp(acc - peak[:, None]), 1), mask=inside_N)
    gap = tl.where(inside_V[None, :], peak[:, None] - acc, 0.0)
    tl.store(gaps_LNB + row * B + block, tl.sum(gap, 1), mask=inside_N)


logits = tuned(
    _logits,
    [
        triton.Config({"BLOCK_N": 64, "BLOCK_C": 64}, num_warps=4, num_stages=3),
        triton.Config({"BLOCK_N": 128, "BLOCK_C": 32}, num_warps=8, num_stages=4),
    ],
    [triton.Config({"BLOCK_N": 64, "BLOCK_C": 32}, num_warps=8, num_stages=3)],
)


@triton.jit
def rows(
    logits_LNS,
    peaks_LNB,
    sums_LNB,
    gaps_LNB,
    labels_N,
    targets_NV,
    residuals_LNS,
    peaks_LN,
    inverses_LN,
    losses_LN,
    ranks_LN,
    smoothing,
    N,
    V,
    S,
    SOFT: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Of each row the maximum, 1 / sum of exp(logit - maximum), the loss, and how many logits are ahead of the label's.

    Maximum and sum stay apart: their log-sum-exp would lose the digits that large logits leave it. SOFT: the loss is
    that of the probabilities in targets_NV, whose likeliest classes are the labels; softmax - target goes to
    residuals_LNS, so that the targets are read once.
    """
    head = tl.program_id(1).to(tl.int64)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = n < N
    n = tl.minimum(n, N - 1)  # rows past the end repeat the last one, so that no load needs a mask for them
    row = head * N + n
    B = S // BLOCK_V
    peak = tl.full((BLOCK_N,), float("-inf"), tl.float32)
    for start in range(0, B, BLOCK_B):
        b = start + tl.arange(0, BLOCK_B)
        peaks = tl.load(peaks_LNB + row[:, None] * B + b[None, :], mask=(b < B)[None, :], other=float("-inf"))
        peak = tl.maximum(peak, tl.max(peaks, 1))
    total = tl.zeros((BLOCK_N,), tl.float32)
    gap = tl.zeros((BLOCK_N,), tl.float32)
    for start in range(0, B, BLOCK_B):
        b = start + tl.arange(0, BLOCK_B)
        inside_B = (b < B)[None, :]
        at = row[:, None] * B + b[None, :]
        lower = peak[:, None] - tl.load(peaks_LNB + at, mask=inside_B, other=0.0)
        total += tl.sum(tl.load(sums_LNB + at, mask=inside_B, other=0.0) * tl.exp(-lower), 1)
        classes = tl.minimum(V - b * BLOCK_V, BLOCK_V).to(tl.float32)
        gaps = tl.load(gaps_LNB + at, mask=inside_B, other=0.0) + classes[None, :] * lower
        gap += tl.sum(tl.where(inside_B, gaps, 0.0), 1)
    inverse = 1 / total
    label = tl.load(labels_N + n)
    known = (label >= 0) & (label < V)
    own = tl.load(logits_LNS + row * S + label, mask=known, other=float("nan"))
    ahead = tl.zeros((BLOCK_N,), tl.int32)
    behind = peak - own
    if SOFT:
        behind = tl.zeros((BLOCK_N,), tl.float32)
    for start in range(0, S, BLOCK_S):
        v = start + tl.arange(0, BLOCK_S)
        other = tl.load(logits_LNS + row[:, None] * S + v[None, :], mask=(v < S)[None, :], other=float("-inf"))
        # "Not below" instead of "above": NaN is ahead of everything, so a net that diverged has no right answers.
        beats = tl.where(v[None, :] < label[:, None], ~(other < own[:, None]), ~(other <= own[:, None]))
        ahead += tl.sum((beats & (v[None, :] != label[:, None]) & (v < V)[None, :]).to(tl.int32), 1)
        if SOFT:
            target = tl.load(targets_NV + n[:, None].to(tl.int64) * V + v[None, :], mask=(v < V)[None, :], other=0.0)
            lower = tl.where((v < V)[None, :], peak[:, None] - other, 0.0)
            behind += tl.sum(target * lower, 1)
            residual = tl.exp(-lower) * inverse[:, None] - (1 - smoothing) * target - smoothing / V
            at = residuals_LNS + row[:, None] * S + v[None, :]
            tl.store(at, tl.where((v < V)[None, :], residual, 0.0), mask=inside[:, None] & (v < S)[None, :])
    # Each summand is 0 or more where logits are finite: nothing cancels.
    loss = tl.log(total) + (1 - smoothing) * behind + smoothing * (gap / V)
    tl.store(peaks_LN + row, peak, mask=inside)
    tl.store(inverses_LN + row, inverse, mask=inside)
    tl.store(losses_LN + row, loss, mask=inside)
    tl.store(ranks_LN + row, ahead, mask=inside)


@triton.jit
def tally(losses_LN, ranks_LN, losses_L, top1_L, top5_L, N, BLOCK_N: tl.constexpr):
    """Mean loss and counts of right answers; one program per head, so that the sum has one order."""
    head = tl.program_id(1).to(tl.int64)
    loss = tl.zeros((BLOCK_N,), tl.float32)
    top1 = tl.zeros((BLOCK_N,), tl.int32)
    top5 = tl.zeros((BLOCK_N,), tl.int32)
    for start in range(0, N, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        loss += tl.load(losses_LN + head * N + n, mask=n < N, other=0.0)
        rank = tl.load(ranks_LN + head * N + n, mask=n < N, other=5)
        top1 += (rank < 1).to(tl.int32)
        top5 += (rank < 5).to(tl.int32)
    tl.store(losses_L + head, tl.sum(loss, 0) / N)
    tl.store(top1_L + head, tl.sum(top1, 0).to(tl.int64))
    tl.store(top5_L + head, tl.sum(top5, 0).to(tl.int64))
