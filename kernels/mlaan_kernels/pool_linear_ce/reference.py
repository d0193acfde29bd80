"""The heads in plain PyTorch, on any device: the judge in tests, and the path without Triton."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mlaan_kernels.pool_linear_ce.arguments import LIFT, HeadResults, wide


def pool(features: Tensor) -> Tensor:
    """See `mlaan_kernels.pool_linear_ce.pool`; float64 stays float64."""
    features = features.to(wide(features.dtype))
    if features.ndim == 4:
        return features.mean((2, 3))
    return features.mean(1) if features.ndim == 3 else features


def pool_linear_ce(
    features: Sequence[Tensor],
    taps: Sequence[int],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    labels: Tensor,
    loss_weights: Sequence[float],
    label_smoothing: float,
) -> HeadResults:
    """See `mlaan_kernels.pool_linear_ce.pool_linear_ce`; to be called without gradient mode, arguments checked."""
    dtype = features[0].dtype
    pooled = [_rounded(pool(feature), dtype) for feature in features]
    heads = [
        _head(pooled[tap], weight, bias, labels, loss_weight, label_smoothing, dtype)
        for tap, weight, bias, loss_weight in zip(taps, weights, biases, loss_weights, strict=True)
    ]
    losses, top1, top5, weight_grads, bias_grads, pooled_grads = map(torch.stack, zip(*heads, strict=True))
    return HeadResults(losses, top1, top5, weight_grads, None if biases[0] is None else bias_grads, pooled_grads)


def _head(
    pooled: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    loss_weight: float,
    label_smoothing: float,
    dtype: torch.dtype,
) -> tuple[Tensor, ...]:
    """One head's losses, top1, top5, weight_grads, bias_grads, pooled_grads; `pooled` is rounded to `dtype`."""
    classes = weight.shape[0]
    weight = _rounded(weight, dtype)
    logits = pooled @ weight.T
    if bias is not None:
        logits = logits + bias
    log_softmax = logits.log_softmax(1)
    if labels.ndim == 2:
        target = (1 - label_smoothing) * labels + label_smoothing / classes
        labels = labels.argmax(1)
    else:
        target = torch.full_like(logits, label_smoothing / classes)
        target.scatter_add_(1, labels[:, None], target.new_full((len(labels), 1), 1 - label_smoothing))
    own = logits.gather(1, labels[:, None])
    before = torch.arange(classes, device=labels.device) < labels[:, None]
    # NaN is neither below nor equal: a label among NaN is no right answer, as for argmax.
    ahead = torch.where(before, ~(logits < own), ~(logits <= own)).scatter(1, labels[:, None], False).sum(1)
    residual = log_softmax.exp() - target
    rounded = _rounded(residual * LIFT, dtype) / LIFT
    scale = loss_weight / len(labels)
    return (
        -(target * log_softmax).sum(1).mean(),
        (ahead < 1).sum(),
        (ahead < 5).sum(),
        scale * (rounded.T @ pooled),
        scale * residual.sum(0),
        scale * (rounded @ weight),
    )


def _rounded(values: Tensor, dtype: torch.dtype) -> Tensor:
    """As an operand of a matrix product in `dtype` would be, kept in its own dtype so that the sums are wide."""
    return values.to(dtype).to(values.dtype)
