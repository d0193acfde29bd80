"""The Triton form as operators of PyTorch, which tracing and fake tensors understand, and its derivative."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mlaan_kernels.conv1x1 import triton
from mlaan_kernels.conv1x1.tiles import ceil, row_tile
from mlaan_kernels.norm import Norm, Partials


@torch.library.custom_op("mlaan::conv1x1_forward", mutates_args=())
def _forward(
    x: Tensor,
    weight: Tensor,
    mean: Tensor | None,
    scale: Tensor | None,
    bias: Tensor | None,
    stride: int,
    groups: int,
) -> Tensor:
    return triton.forward(x, weight, _present(mean, scale, bias), stride, groups, _slices(mean), statistics=False)[0]


@_forward.register_fake
def _(x: Tensor, weight: Tensor, mean: Any, scale: Any, bias: Any, stride: int, groups: int) -> Tensor:
    return _map(x, weight.shape[0], ceil(x.shape[2], stride), ceil(x.shape[3], stride))


@torch.library.custom_op("mlaan::conv1x1_forward_statistics", mutates_args=())
def _forward_statistics(
    x: Tensor,
    weight: Tensor,
    mean: Tensor | None,
    scale: Tensor | None,
    bias: Tensor | None,
    stride: int,
    groups: int,
    slices: int,
) -> tuple[Tensor, Tensor, Tensor]:
    y, sums, squares = triton.forward(x, weight, _present(mean, scale, bias), stride, groups, slices, statistics=True)
    assert sums is not None
    assert squares is not None
    return y, sums, squares


@_forward_statistics.register_fake
def _(
    x: Tensor, weight: Tensor, mean: Any, scale: Any, bias: Any, stride: int, groups: int, slices: int
) -> tuple[Tensor, Tensor, Tensor]:
    y = _map(x, weight.shape[0], ceil(x.shape[2], stride), ceil(x.shape[3], stride))
    rows = y.shape[0] // slices * y.shape[2] * y.shape[3]
    shape = (slices, ceil(rows, _tile(rows, slices, weight, groups)), weight.shape[0])
    return y, x.new_empty(shape, dtype=torch.float32), x.new_empty(shape, dtype=torch.float32)


@torch.library.custom_op("mlaan::conv1x1_input_grad", mutates_args=())
def _input_grad(dy: Tensor, weight: Tensor, height: int, width: int, stride: int, groups: int) -> Tensor:
    dx = _untouched(dy, weight.shape[1] * groups, height, width, stride)
    triton.input_grad(dy, weight, dx, None, None, stride, groups, add=False)
    return dx


@_input_grad.register_fake
def _(dy: Tensor, weight: Tensor, height: int, width: int, stride: int, groups: int) -> Tensor:
    return _map(dy, weight.shape[1] * groups, height, width)


@torch.library.custom_op("mlaan::conv1x1_input_grad_add", mutates_args=("add",))
def _input_grad_add(dy: Tensor, weight: Tensor, add: Tensor, stride: int, groups: int) -> None:
    triton.input_grad(dy, weight, add, None, None, stride, groups, add=True)


@torch.library.custom_op("mlaan::conv1x1_input_grad_norm", mutates_args=())
def _input_grad_norm(
    dy: Tensor,
    weight: Tensor,
    norm_input: Tensor,
    mean: Tensor,
    invstd: Tensor,
    scale: Tensor,
    bias: Tensor,
    stride: int,
    groups: int,
) -> tuple[Tensor, Tensor]:
    _, channels, height, width = norm_input.shape
    dz = _untouched(dy, channels, height, width, stride)
    sums = triton.input_grad(dy, weight, dz, norm_input, (mean, invstd, scale, bias), stride, groups, add=False)
    assert sums is not None
    return dz, sums


@_input_grad_norm.register_fake
def _(
    dy: Tensor,
    weight: Tensor,
    norm_input: Tensor,
    mean: Tensor,
    invstd: Tensor,
    scale: Tensor,
    bias: Tensor,
    stride: int,
    groups: int,
) -> tuple[Tensor, Tensor]:
    images, channels, height, width = norm_input.shape
    shape = (dy.shape[0] // images, mean.shape[0], 2, channels)
    return _map(dy, channels, height, width), dy.new_empty(shape, dtype=torch.float32)


@torch.library.custom_op("mlaan::conv1x1_weight_grad", mutates_args=())
def _weight_grad(
    dy: Tensor,
    x: Tensor,
    mean: Tensor | None,
    scale: Tensor | None,
    bias: Tensor | None,
    stride: int,
    groups: int,
) -> Tensor:
    return triton.weight_grad(dy, x, _present(mean, scale, bias), stride, groups, _slices(mean))


@_weight_grad.register_fake
def _(dy: Tensor, x: Tensor, mean: Any, scale: Any, bias: Any, stride: int, groups: int) -> Tensor:
    return x.new_empty((dy.shape[1], x.shape[1] // groups, 1, 1), dtype=torch.float32)


def conv1x1_forward(
    x: Tensor, weight: Tensor, norm: Norm | None, *, stride: int, groups: int, statistics: bool, slices: int
) -> tuple[Tensor, Partials | None]:
    """See `mlaan_kernels.conv1x1.conv1x1_forward`."""
    vectors = (None, None, None) if norm is None else (norm.mean, norm.scale, norm.bias)
    if not statistics:
        return _forward(x, weight, *vectors, stride, groups), None
    y, sums, squares = _forward_statistics(x, weight, *vectors, stride, groups, slices)
    rows = y.shape[0] // slices * y.shape[2] * y.shape[3]
    return y, Partials(sums, squares, tile=_tile(rows, slices, weight, groups), rows=rows)


def conv1x1_input_grad(
    dy: Tensor,
    weight: Tensor,
    input_shape: tuple[int, int, int, int],
    norm_input: Tensor | None,
    norm: Norm | None,
    *,
    stride: int,
    groups: int,
    add: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    """See `mlaan_kernels.conv1x1.conv1x1_input_grad`."""
    if add is not None:
        _input_grad_add(dy, weight, add, stride, groups)
        return add, None
    if norm is None or norm_input is None:
        return _input_grad(dy, weight, *input_shape[2:], stride, groups), None
    return _input_grad_norm(dy, weight, norm_input, *norm, stride, groups)


def conv1x1_weight_grad(dy: Tensor, x: Tensor, norm: Norm | None, *, stride: int, groups: int) -> Tensor:
    """See `mlaan_kernels.conv1x1.conv1x1_weight_grad`."""
    vectors = (None, None, None) if norm is None else (norm.mean, norm.scale, norm.bias)
    return _weight_grad(dy, x, *vectors, stride, groups)


def conv1x1(x: Tensor, weight: Tensor, *, stride: int, groups: int) -> Tensor:
    """See `mlaan_kernels.conv1x1.conv1x1`; x is dense channels_last."""
    return _Convolution.apply(x, weight, stride, groups)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int, groups: int) -> Tensor:
        needs_dx, needs_dweight = ctx.needs_input_grad[:2]
        ctx.save_for_backward(x if needs_dweight else None, weight if needs_dx else None)
        ctx.map, ctx.dtype, ctx.stride, ctx.groups = x.shape[2:], weight.dtype, stride, groups
        return _forward(x, weight, None, None, None, stride, groups)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *gradients: Tensor
    ) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, weight = ctx.saved_tensors
        dy = gradients[0].contiguous(memory_format=torch.channels_last)
        dx = None if weight is None else _input_grad(dy, weight, *ctx.map, ctx.stride, ctx.groups)
        dweight = None if x is None else _weight_grad(dy, x, None, None, None, ctx.stride, ctx.groups).to(ctx.dtype)
        return dx, dweight, None, None


def _present(mean: Tensor | None, scale: Tensor | None, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor] | None:
    return None if mean is None or scale is None or bias is None else (mean, scale, bias)


def _slices(mean: Tensor | None) -> int:
    return 1 if mean is None else mean.shape[0]


def _tile(rows: int, slices: int, weight: Tensor, groups: int) -> int:
    return row_tile(rows, slices, weight.shape[0] // groups, groups, weight.element_size()).rows


def _map(like: Tensor, channels: int, height: int, width: int) -> Tensor:
    shape = (like.shape[0], channels, height, width)
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


def _untouched(dy: Tensor, channels: int, height: int, width: int, stride: int) -> Tensor:
    """Memory for a gradient; with stride 2 zeros, as not every row is written."""
    dx = _map(dy, channels, height, width)
    return dx if stride == 1 else dx.zero_()
