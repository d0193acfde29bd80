"""Global average pool, linear layer and softmax cross-entropy of many heads, forward and backward in one go."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mlaan_kernels.choice import Implementation, use_triton
from mlaan_kernels.pool_linear_ce import reference
from mlaan_kernels.pool_linear_ce.arguments import HeadResults, check, check_features

__all__ = ["HeadResults", "pool", "pool_linear_ce", "pool_linear_ce_loss"]


@torch.no_grad()
def pool_linear_ce(
    features: Sequence[Tensor],
    taps: Sequence[int],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    labels: Tensor,
    loss_weights: Sequence[float],
    *,
    label_smoothing: float = 0.0,
    implementation: Implementation = "auto",
) -> HeadResults:
    """Losses, right answers and all gradients of L heads over F features; the maths is in this folder's README.

    Head l averages features[taps[l]] over pixels or tokens, applies weights[l] and biases[l], and takes the mean
    cross-entropy, as torch.nn.functional.cross_entropy. The results carry no autograd history: they are the gradients.

    The pooled features are sums in float32. The three matrix products take operands rounded to the features' dtype and
    sum in float32; with float32 features on a GPU `torch.backends.cuda.matmul.allow_tf32` decides how exact they are.
    Nothing waits for the device. In a CUDA graph, call once with the same taps before the capture.

    Args:
        features: F tensors (N, C, H, W), whose H and W may differ, tokens (N, T, C), or pooled (N, C), all of one
            dtype: float32, bfloat16, float16, or float64 (which the reference serves). Maps are read as channels_last;
            others are copied first.
        taps: the feature that each head reads, L indices into `features`.
        weights: L tensors (V, C), float32, or float64 for float64 features.
        biases: L tensors (V,) of the weights' dtype, or L times None.
        labels: (N,) int64, each in [0, V). This is not checked: the Triton form answers others with a NaN loss. Or
            (N, V) probabilities of the weights' dtype, whose rows sum to 1, which is not checked either.
        loss_weights: L factors on the heads' gradients.
        label_smoothing: share of the target spread evenly over all classes, in [0, 1).
        implementation: "auto", "reference" or "triton"; see `mlaan_kernels.choice`.

    Raises:
        ValueError: counts, shapes, dtypes or devices do not fit, or label_smoothing is outside [0, 1).
        mlaan_kernels.choice.TritonUnavailableError: "triton" was asked for and cannot run.
    """
    check(features, taps, weights, biases, labels, loss_weights, label_smoothing)
    if not use_triton("pool_linear_ce", implementation, features[0]):
        return reference.pool_linear_ce(features, taps, weights, biases, labels, loss_weights, label_smoothing)
    from mlaan_kernels.pool_linear_ce import autograd

    given = [bias for bias in biases if bias is not None]
    losses, top1, top5, weight_grads, bias_grads, pooled_grads = autograd.heads(
        list(features), list(taps), list(weights), given, labels, list(loss_weights), label_smoothing
    )
    return HeadResults(losses, top1, top5, weight_grads, bias_grads if given else None, pooled_grads)


@torch.no_grad()
def pool(features: Tensor, *, implementation: Implementation = "auto") -> Tensor:
    """Mean over the pixels of (N, C, H, W) or the tokens of (N, T, C); (N, C) float32, or float64 for float64.

    Raises:
        ValueError: `features` has another shape or dtype, or is empty.
        mlaan_kernels.choice.TritonUnavailableError: "triton" was asked for and cannot run.
    """
    check_features("features", features)
    if not use_triton("pool_linear_ce.pool", implementation, features):
        return reference.pool(features)
    from mlaan_kernels.pool_linear_ce import autograd

    return autograd.pool(features)


def pool_linear_ce_loss(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    *,
    label_smoothing: float = 0.0,
    implementation: Implementation = "auto",
) -> Tensor:
    """One head's loss, shape (), differentiable once for features, weight and bias; arguments as `pool_linear_ce`'s.

    The forward pass computes all gradients, so that the backward pass has only to scale them.
    """
    from mlaan_kernels.pool_linear_ce.autograd import Loss

    loss: Tensor = Loss.apply(features, weight, bias, labels, label_smoothing, implementation)  # pyright: ignore[reportAssignmentType]
    return loss
