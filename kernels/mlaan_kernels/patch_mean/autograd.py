"""The Triton launchers as operators of torch.library, and the function that autograd knows."""

from typing import Any

import torch
from torch import Tensor

from mlaan_kernels.patch_mean import triton

forward = torch.library.custom_op("mlaan::patch_mean_forward", triton.forward, mutates_args=())
backward = torch.library.custom_op("mlaan::patch_mean_backward", triton.backward, mutates_args=())


@forward.register_fake
def _(h: Tensor, patches: int) -> Tensor:
    N, C, H, W = h.shape
    return triton.empty_map(h, (N, C, triton.cdiv(H, patches), triton.cdiv(W, patches)))


@backward.register_fake
def _(dmean: Tensor, patches: int, height: int, width: int) -> Tensor:
    return triton.empty_map(dmean, (*dmean.shape[:2], height, width))


class PatchMean(torch.autograd.Function):
    """See `mlaan_kernels.patch_mean.patch_mean`; nothing is saved."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, patches: int) -> Tensor:
        ctx.patches, ctx.size = patches, h.shape[2:]
        return forward(h.contiguous(memory_format=torch.channels_last), patches)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return backward(grads[0].contiguous(memory_format=torch.channels_last), ctx.patches, *ctx.size), None
