"""The Triton launchers as operators of torch.library, and the function that autograd knows."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mlaan_kernels.contrast_loss import triton

forward = torch.library.custom_op("mlaan::contrast_loss_forward", triton.forward, mutates_args=())
backward = torch.library.custom_op("mlaan::contrast_loss_backward", triton.backward, mutates_args=())


@forward.register_fake
def _(x: Tensor, labels: Tensor, temperature: float) -> tuple[Tensor, ...]:
    return tuple(triton.empty_forward(x))


@backward.register_fake
def _(grad: Tensor, z: Tensor, *others: Any) -> Tensor:
    *_, D, dtype = others
    return z.new_empty(len(z), D, dtype=dtype)


class ContrastLoss(torch.autograd.Function):
    """See `mlaan_kernels.contrast_loss.contrast_loss`; saves the rows of length 1 and four numbers for each."""

    @staticmethod
    def forward(ctx: Any, embeddings: Tensor, labels: Tensor, temperature: float) -> Tensor:
        labels = labels.contiguous()
        loss, *saved = forward(embeddings.contiguous(), labels, temperature)
        ctx.settings = (temperature, embeddings.shape[1], embeddings.dtype)
        ctx.save_for_backward(*saved, labels)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return backward(grads[0], *ctx.saved_tensors, *ctx.settings), None, None
