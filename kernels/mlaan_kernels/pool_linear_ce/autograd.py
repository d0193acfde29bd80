"""The Triton form as custom operators of PyTorch, and the head's loss as a differentiable function."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mlaan_kernels.choice import Implementation


@torch.library.custom_op("mlaan::pool_linear_ce_pool", mutates_args=())
def pool(features: Tensor) -> Tensor:
    """See `mlaan_kernels.pool_linear_ce.pool`."""
    from mlaan_kernels.pool_linear_ce import triton as kernels

    return kernels.pool(features)


@pool.register_fake
def _(features: Tensor) -> Tensor:
    return features.new_empty(_pooled_shape(features), dtype=torch.float32)


@torch.library.custom_op("mlaan::pool_linear_ce_heads", mutates_args=())
def heads(
    features: list[Tensor],
    taps: list[int],
    weights: list[Tensor],
    biases: list[Tensor],
    labels: Tensor,
    loss_weights: list[float],
    label_smoothing: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The fields of `HeadResults`; `biases` is empty where the heads have none, bias_grads are there anyway."""
    from mlaan_kernels.pool_linear_ce import triton as kernels

    return kernels.heads(features, taps, weights, biases, labels, loss_weights, label_smoothing)


@heads.register_fake
def _(
    features: list[Tensor],
    taps: list[int],
    weights: list[Tensor],
    biases: list[Tensor],
    labels: Tensor,
    loss_weights: list[float],
    label_smoothing: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    count, (classes, channels) = len(weights), weights[0].shape

    def fresh(*shape: int | torch.SymInt, dtype: torch.dtype = torch.float32) -> Tensor:
        return features[0].new_empty(shape, dtype=dtype)

    return (
        fresh(count),
        fresh(count, dtype=torch.int64),
        fresh(count, dtype=torch.int64),
        fresh(count, classes, channels),
        fresh(count, classes),
        fresh(count, labels.shape[0], channels),
    )


class Loss(torch.autograd.Function):
    """See `mlaan_kernels.pool_linear_ce.pool_linear_ce_loss`."""

    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        label_smoothing: float,
        implementation: Implementation,
    ) -> Tensor:
        from mlaan_kernels.pool_linear_ce import pool_linear_ce

        results = pool_linear_ce(
            [features],
            [0],
            [weight],
            [bias],
            labels,
            [1.0],
            label_smoothing=label_smoothing,
            implementation=implementation,
        )
        bias_grad = None if results.bias_grads is None else results.bias_grads[0]
        ctx.save_for_backward(results.weight_grads[0], bias_grad, results.pooled_grads[0])
        ctx.shape, ctx.dtype = features.shape, features.dtype
        return results.losses[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        weight_grad, bias_grad, pooled_grad = ctx.saved_tensors
        features_grad = None
        if ctx.needs_input_grad[0]:
            features_grad = _spread(grad * pooled_grad, ctx.shape, ctx.dtype)
        return (
            features_grad,
            grad * weight_grad if ctx.needs_input_grad[1] else None,
            grad * bias_grad if bias_grad is not None and ctx.needs_input_grad[2] else None,
            None,
            None,
            None,
        )


def _pooled_shape(features: Tensor) -> tuple[int | torch.SymInt, ...]:
    return features.shape[0], features.shape[1] if features.ndim == 4 else features.shape[-1]


def _spread(pooled_grad: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """The gradient of the features out of that of their mean: the same for all pixels, so a view will do."""
    if len(shape) == 4:
        return (pooled_grad / (shape[2] * shape[3])).to(dtype)[:, :, None, None].expand(shape)
    if len(shape) == 3:
        return (pooled_grad / shape[1]).to(dtype)[:, None, :].expand(shape)
    return pooled_grad.to(dtype)
