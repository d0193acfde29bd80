"""Launches of the Triton form.

Shape suffixes as in the kernels: N images, P pixels or tokens, C channels, F features, L heads, V classes, S classes
with the padding of a logits row, B blocks of classes in it.
"""

import functools
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mlaan_kernels import launching
from mlaan_kernels.pool_linear_ce import forward_kernels, gradient_kernels, tiles
from mlaan_kernels.pool_linear_ce.arguments import LIFT
from mlaan_kernels.pool_linear_ce.variants import variants

__all__ = ["heads", "pool", "variants"]


class Operands(NamedTuple):
    """What the matrix kernels read, in the features' dtype, and the heads' sides."""

    pooled_FNC: Tensor
    weights_LVC: Tensor
    biases_LV: Tensor | None
    taps_L: Tensor
    labels_N: Tensor
    targets_NV: Tensor | None
    """Probabilities in place of the labels, which then are their likeliest classes."""

    @property
    def single(self) -> bool:
        return self.pooled_FNC.dtype == torch.float32

    @property
    def product(self) -> dict[str, Any]:
        """The matrix kernels' constants for products of this dtype."""
        precision = launching.dot_precision(self.pooled_FNC.dtype, linear=True)
        return {"PRECISION": precision, "INTERPRETED": launching.INTERPRETED}


class Softmax(NamedTuple):
    """exp(logits - peaks) * inverses is the softmax; of probabilities the logits are softmax - target instead."""

    logits_LNS: Tensor
    peaks_LN: Tensor
    inverses_LN: Tensor


def pool(features: Tensor) -> Tensor:
    """See `mlaan_kernels.pool_linear_ce.pool`."""
    x_NPC = _pixels(features)
    pooled_NC = x_NPC.new_empty((x_NPC.shape[0], x_NPC.shape[2]), dtype=torch.float32)
    _pool(x_NPC, pooled_NC)
    return pooled_NC


def heads(
    features: Sequence[Tensor],
    taps: Sequence[int],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    labels: Tensor,
    loss_weights: Sequence[float],
    label_smoothing: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The fields of `HeadResults`; `biases` is empty where the heads have none, bias_grads are there anyway."""
    dtype, device = features[0].dtype, features[0].device
    # Heads are separate parameters, at addresses of their own; side by side one launch serves them all. In half
    # precision they have to be written anew for the rounding at any rate.
    weights_LVC = torch.stack(list(weights)).to(dtype)
    pooled_FNC = weights_LVC.new_empty((len(features), labels.shape[0], weights_LVC.shape[2]))
    for feature, pooled_NC in zip(features, pooled_FNC, strict=True):
        _pool(_pixels(feature), pooled_NC)
    operands = Operands(
        pooled_FNC,
        weights_LVC,
        torch.stack(list(biases)) if biases else None,
        _taps(tuple(taps), device),
        (labels.argmax(1) if labels.ndim == 2 else labels).contiguous(),
        labels.contiguous() if labels.ndim == 2 else None,
    )
    softmax, losses_L, top1_L, top5_L = _forward(operands, label_smoothing)
    scales_L = _scales(loss_weights, labels.shape[0], device)
    return losses_L, top1_L, top5_L, *_backward(operands, softmax, scales_L, label_smoothing)


def _forward(operands: Operands, smoothing: float) -> tuple[Softmax, Tensor, Tensor, Tensor]:
    """The softmax, losses_L, top1_L and top5_L."""
    (L, V, C), N = operands.weights_LVC.shape, len(operands.labels_N)
    block_V = tiles.class_block(V)
    B = tiles.count(V, block_V)
    S = B * block_V  # rows are padded: the gradients' loads are then wide, and need no mask for classes

    def fresh(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=operands.labels_N.device)

    logits_LNS = fresh(L, N, S)
    partials = fresh(L, N, B), fresh(L, N, B), fresh(L, N, B)
    logits = forward_kernels.logits[operands.single]
    launching.launch(
        logits.kernel,
        (logits.most_tiles(BLOCK_N=N) * B, L),
        *(operands.pooled_FNC, operands.weights_LVC, operands.biases_LV, operands.taps_L),
        *(logits_LNS, *partials, N, V, C, S),
        HAS_BIAS=operands.biases_LV is not None,
        BLOCK_V=block_V,
        **operands.product,
    )
    peaks_LN, inverses_LN, losses_LN, ranks_LN = fresh(L, N), fresh(L, N), fresh(L, N), fresh(L, N, dtype=torch.int32)
    is_soft = operands.targets_NV is not None
    residuals_LNS = fresh(L, N, S) if is_soft else None
    constants = tiles.row_constants(V)
    launching.launch(
        forward_kernels.rows,
        (tiles.count(N, constants["BLOCK_N"]), L),
        *(logits_LNS, *partials, operands.labels_N, operands.targets_NV, residuals_LNS),
        *(peaks_LN, inverses_LN, losses_LN, ranks_LN, smoothing, N, V, S),
        SOFT=is_soft,
        **constants,
    )
    losses_L, top1_L, top5_L = fresh(L), fresh(L, dtype=torch.int64), fresh(L, dtype=torch.int64)
    launching.launch(
        forward_kernels.tally,
        (1, L),
        *(losses_LN, ranks_LN, losses_L, top1_L, top5_L, N),
        BLOCK_N=tiles.BLOCK_TALLY,
    )
    softmax = Softmax(logits_LNS if residuals_LNS is None else residuals_LNS, peaks_LN, inverses_LN)
    return softmax, losses_L, top1_L, top5_L


def _backward(
    operands: Operands, softmax: Softmax, scales_L: Tensor, smoothing: float
) -> tuple[Tensor, Tensor, Tensor]:
    """weight_grads_LVC, bias_grads_LV and pooled_grads_LNC."""
    (L, V, C), N, S = operands.weights_LVC.shape, len(operands.labels_N), softmax.logits_LNS.shape[2]
    weight_grads_LVC, bias_grads_LV = scales_L.new_empty((L, V, C)), scales_L.new_empty((L, V))
    pooled_grads_LNC = scales_L.new_empty((L, N, C))
    pooled_gradient = gradient_kernels.pooled_gradient[operands.single]
    weight_gradient = gradient_kernels.weight_gradient[operands.single]
    launching.launch(
        pooled_gradient.kernel,
        (pooled_gradient.most_tiles(BLOCK_N=N, BLOCK_C=C), L),
        *(*softmax, operands.labels_N, operands.weights_LVC, scales_L, pooled_grads_LNC, smoothing, N, V, C, S),
        SOFT=operands.targets_NV is not None,
        LIFT=LIFT,
        BLOCK_V=tiles.loop_block(V, operands.single),
        **operands.product,
    )
    block_V = tiles.class_block(V)
    launching.launch(
        weight_gradient.kernel,
        (weight_gradient.most_tiles(BLOCK_C=C) * tiles.count(V, block_V), L),
        *(*softmax, operands.labels_N, operands.pooled_FNC, operands.taps_L, scales_L),
        *(weight_grads_LVC, bias_grads_LV, smoothing, N, V, C, S),
        SOFT=operands.targets_NV is not None,
        LIFT=LIFT,
        BLOCK_V=block_V,
        **operands.product,
    )
    return weight_grads_LVC, bias_grads_LV, pooled_grads_LNC


def _pixels(features: Tensor) -> Tensor:
    """(N, P, C), contiguous: no copy for channels_last maps."""
    if features.ndim == 4:
        features = features.permute(0, 2, 3, 1)
    return features.contiguous().view(features.shape[0], -1, features.shape[-1])


def _pool(x_NPC: Tensor, pooled_NC: Tensor) -> None:
    N, P, C = x_NPC.shape
    constants = tiles.pool_constants(N, C)
    launching.launch(
        forward_kernels.pool, (N, tiles.count(C, constants["BLOCK_C"])), x_NPC, pooled_NC, P, C, **constants
    )


@functools.cache
def _taps(taps: tuple[int, ...], device: torch.device) -> Tensor:
    """Sent to the device once and kept for good: a captured CUDA graph goes on reading it."""
    return torch.tensor(taps, dtype=torch.int32, device=device)


def _scales(loss_weights: Sequence[float], images: int, device: torch.device) -> Tensor:
    """loss weight / images of each head.

    By fills, not by a copy from the host, which a CUDA graph could not capture; one for each run of equal weights.
    """
    scales_L = torch.empty(len(loss_weights), dtype=torch.float32, device=device)
    start = 0
    for weight, run in itertools.groupby(loss_weights):
        stop = start + len(list(run))
        scales_L[start:stop].fill_(weight / images)
        start = stop
    return scales_L
