"""The Triton launchers as operators of torch.library, and the function that autograd knows."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mlaan_kernels.similarity_loss import triton
from mlaan_kernels.similarity_loss.reference import takes_deviations

forward = torch.library.custom_op("mlaan::similarity_loss_forward", triton.forward, mutates_args=())
backward = torch.library.custom_op("mlaan::similarity_loss_backward", triton.backward, mutates_args=())


@forward.register_fake
def _(features: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor, Tensor]:
    N, C = features.shape[:2]
    deviations = takes_deviations(features)
    shapes = ((), (N, C) if deviations else (0,), (N, C if deviations else features[0].numel()))
    loss, mean, slopes = (features.new_empty(shape, dtype=torch.float32) for shape in shapes)
    return loss, mean, slopes


@backward.register_fake
def _(features: Tensor, mean: Tensor, slopes: Tensor, grad: Tensor) -> Tensor:
    return torch.empty_like(features)


class SimilarityLoss(torch.autograd.Function):
    """See `mlaan_kernels.similarity_loss.similarity_loss`; saves means and slopes per channel, and the features."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, labels: Tensor, num_classes: int) -> Tensor:
        x = features.contiguous(memory_format=torch.channels_last)
        loss, mean, slopes = forward(x, labels.contiguous(), num_classes)
        ctx.shape, ctx.dtype = features.shape, features.dtype
        ctx.save_for_backward(*((x, mean, slopes) if takes_deviations(x) else (slopes,)))
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        *found, slopes = ctx.saved_tensors
        if found:
            return backward(*found, slopes, grads[0]), None, None
        N, C, H, W = ctx.shape
        return (slopes * grads[0]).to(ctx.dtype).view(N, H, W, C).permute(0, 3, 1, 2), None, None
