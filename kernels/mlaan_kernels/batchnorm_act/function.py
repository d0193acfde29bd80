"""The whole layer as a function that autograd knows, over either form."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mlaan_kernels import batchnorm_act as op
from mlaan_kernels.choice import Implementation
from mlaan_kernels.norm import Norm


class BatchNormAct(torch.autograd.Function):
    """See `batchnorm_act`."""

    @staticmethod
    def forward(
        ctx: Any,
        c: Tensor,
        weight: Tensor,
        bias: Tensor,
        residual: Tensor | None,
        layer: nn.BatchNorm2d,
        relu: bool,
        implementation: Implementation,
    ) -> Tensor:
        norm = op.batch_norm(layer, c, implementation=implementation)
        y, _ = op.normalise(c, norm, residual, relu=relu, implementation=implementation)
        ctx.relu, ctx.implementation = relu, implementation
        ctx.batch_statistics = layer.training or layer.running_mean is None
        ctx.save_for_backward(c, residual if relu else None, *norm)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        c, residual, *numbers = ctx.saved_tensors
        norm, implementation = Norm(*numbers), ctx.implementation
        dy = grads[0].contiguous(memory_format=torch.channels_last)
        write = residual is not None  # else input_grad masks, and dz need not be written: 5 passes, not 6
        sums, dz = op.reduce(
            [dy], [None], c, norm, residual=residual, relu=ctx.relu, write=write, implementation=implementation
        )
        dz = dz if write else dy
        dc = None
        if ctx.needs_input_grad[0]:
            used = sums if ctx.batch_statistics else None
            dc = op.input_grad(dz, c, norm, used, relu=ctx.relu and not write, implementation=implementation)
        dbias, dweight = sums[0].sum(0)
        dresidual = dz if ctx.needs_input_grad[3] else None
        return dc, dweight.to(norm.scale.dtype), dbias.to(norm.scale.dtype), dresidual, None, None, None
