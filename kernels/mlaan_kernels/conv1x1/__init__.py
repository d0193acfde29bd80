"""A 1x1 convolution as one matrix product, with the BatchNorms before and behind it folded in."""

import torch
from torch import Tensor

from mlaan_kernels.choice import Implementation, use_triton
from mlaan_kernels.conv1x1 import reference
from mlaan_kernels.conv1x1.arguments import (
    check_like,
    check_map,
    check_norm,
    check_shape,
    check_slices,
    check_weight,
)
from mlaan_kernels.conv1x1.tiles import ceil
from mlaan_kernels.norm import Norm, Partials

__all__ = ["conv1x1", "conv1x1_forward", "conv1x1_input_grad", "conv1x1_weight_grad"]


@torch.no_grad()
def conv1x1_forward(
    x: Tensor,
    weight: Tensor,
    norm: Norm | None,
    *,
    stride: int = 1,
    groups: int = 1,
    statistics: bool,
    slices: int = 1,
    implementation: Implementation = "auto",
) -> tuple[Tensor, Partials | None]:
    """y = conv(relu((x - mean) * scale + bias), weight), the inner part only with `norm`, and never in memory.

    Equations (1) to (3) of this folder's README. What it gives has no gradient; the functions below are its parts.

    Args:
        x: (N, Cin, H, W), float32, bfloat16, float16 or float64; channels_last, or it is copied.
        weight: (Cout, Cin / groups, 1, 1), of x's dtype.
        norm: BatchNorm of x, in float32 (float64 for float64); its result is rounded to x's dtype.
        stride: 1 or 2.
        groups: of channels.
        statistics: give sums over y, too, for the BatchNorm behind the convolution: over y as rounded to its dtype.
        slices: of those sums; with `norm` it has to be norm.slices.

    Returns:
        y, (N, Cout, ceil(H / stride), ceil(W / stride)) in x's dtype, channels_last, and its sums or None.

    Raises:
        ValueError: shapes, dtypes, devices or numbers do not fit; the message names the argument.
        mlaan_kernels.choice.TritonUnavailableError: "triton" was asked for and cannot run.
    """
    _check_convolution(x, weight, stride, groups)
    check_slices("slices", slices, x.shape[0])
    if norm is not None:
        check_norm(norm, x)
        if statistics and slices != norm.slices:
            raise ValueError(f"slices is {slices}: give {norm.slices}, as norm has them")
    if not use_triton("conv1x1", implementation, x):
        return reference.conv1x1_forward(
            x, weight, norm, stride=stride, groups=groups, statistics=statistics, slices=slices
        )
    from mlaan_kernels.conv1x1 import autograd

    return autograd.conv1x1_forward(
        _dense(x), weight, _dense_norm(norm), stride=stride, groups=groups, statistics=statistics, slices=slices
    )


@torch.no_grad()
def conv1x1_input_grad(
    dy: Tensor,
    weight: Tensor,
    input_shape: tuple[int, int, int, int] | torch.Size,
    norm_input: Tensor | None,
    norm: Norm | None,
    *,
    stride: int = 1,
    groups: int = 1,
    add: Tensor | None = None,
    implementation: Implementation = "auto",
) -> tuple[Tensor, Tensor | None]:
    """Gradient of what went into the convolution, for G cotangents at once.

    Equations (4) to (6) of this folder's README. With `norm` it goes on through the ReLU, up to what leaves the
    BatchNorm, and gives the two sums per channel that the BatchNorm's own gradient needs.

    Args:
        dy: (G * N, Cout, Ho, Wo), one cotangent after the other; channels_last, or it is copied.
        weight: (Cout, Cin / groups, 1, 1), of dy's dtype.
        input_shape: (N, Cin, H, W) of the convolution's input.
        norm_input: c, the (N, Cin, H, W) that goes into the BatchNorm; every cotangent reads the same one.
        norm: that BatchNorm; both or neither.
        stride: 1 or 2; with 2 the gradient of the pixels that the convolution skips is zero.
        groups: of channels.
        add: (G * N, Cin, H, W), dense channels_last: the gradient is added to it in place; not with `norm`. It must not
            share memory with dy, which other programs still read.

    Returns:
        The gradient (G * N, Cin, H, W), channels_last, in dy's dtype, or `add` itself. With `norm` also sums
        (G, S, 2, Cin) in float32 (float64 for float64) over each slice's pixels, taken of the gradient as rounded:
        [:, :, 0] of the gradient, [:, :, 1] of the gradient times (c - mean) * invstd. None otherwise.

    Raises:
        ValueError: shapes, dtypes, devices or numbers do not fit; the message names the argument.
        mlaan_kernels.choice.TritonUnavailableError: "triton" was asked for and cannot run.
    """
    images, channels, height, width = shape = _check_input_shape(input_shape)
    check_map("dy", dy)
    check_weight(weight, dy, groups, stride)
    check_shape("weight", weight, (weight.shape[0], channels // groups, 1, 1))
    if dy.shape[0] % images:
        raise ValueError(f"dy has {dy.shape[0]} images: give a multiple of the {images} of input_shape")
    check_shape("dy", dy, (dy.shape[0], weight.shape[0], ceil(height, stride), ceil(width, stride)))
    if (norm is None) != (norm_input is None):
        raise ValueError("norm and norm_input belong together: give both or neither")
    if norm is not None and norm_input is not None:
        if add is not None:
            raise ValueError("add is given along with norm: give one of them")
        check_shape("norm_input", norm_input, shape)
        check_like("norm_input", norm_input, dy)
        check_norm(norm, norm_input)
        norm_input = _dense(norm_input)
    if add is not None:
        check_shape("add", add, (dy.shape[0], channels, height, width))
        check_like("add", add, dy)
        if not add.is_contiguous(memory_format=torch.channels_last):
            raise ValueError(f"add has strides {add.stride()}: it is written in place, so give dense channels_last")
    if not use_triton("conv1x1", implementation, dy):
        return reference.conv1x1_input_grad(dy, weight, shape, norm_input, norm, stride=stride, groups=groups, add=add)
    from mlaan_kernels.conv1x1 import autograd

    return autograd.conv1x1_input_grad(
        _dense(dy), weight, shape, norm_input, _dense_norm(norm), stride=stride, groups=groups, add=add
    )


@torch.no_grad()
def conv1x1_weight_grad(
    dy: Tensor,
    x: Tensor,
    norm: Norm | None,
    *,
    stride: int = 1,
    groups: int = 1,
    implementation: Implementation = "auto",
) -> Tensor:
    """Gradient of the weight; with `norm` the convolution's input is made again out of x: equation (7) of the README.

    Args:
        dy: (N, Cout, ceil(H / stride), ceil(W / stride)), of x's dtype; channels_last, or it is copied.
        x: (N, Cin, H, W), what went into `conv1x1_forward`; channels_last, or it is copied.
        norm: BatchNorm of x.
        stride: 1 or 2.
        groups: of channels.

    Returns:
        (Cout, Cin / groups, 1, 1) in float32, float64 for float64.

    Raises:
        ValueError: shapes, dtypes, devices or numbers do not fit; the message names the argument.
        mlaan_kernels.choice.TritonUnavailableError: "triton" was asked for and cannot run.
    """
    check_map("x", x)
    check_map("dy", dy)
    check_like("dy", dy, x)
    if stride not in (1, 2):
        raise ValueError(f"stride is {stride}: give 1 or 2")
    if groups < 1 or x.shape[1] % groups or dy.shape[1] % groups:
        raise ValueError(f"groups is {groups}: give a divisor of the {x.shape[1]} and {dy.shape[1]} channels")
    check_shape("dy", dy, (x.shape[0], dy.shape[1], ceil(x.shape[2], stride), ceil(x.shape[3], stride)))
    if norm is not None:
        check_norm(norm, x)
    if not use_triton("conv1x1", implementation, x):
        return reference.conv1x1_weight_grad(dy, x, norm, stride=stride, groups=groups)
    from mlaan_kernels.conv1x1 import autograd

    return autograd.conv1x1_weight_grad(_dense(dy), _dense(x), _dense_norm(norm), stride=stride, groups=groups)


def conv1x1(
    x: Tensor, weight: Tensor, *, stride: int = 1, groups: int = 1, implementation: Implementation = "auto"
) -> Tensor:
    """The convolution by itself, differentiable; gradients that nobody needs are not computed.

    Args:
        x: (N, Cin, H, W), float32, bfloat16, float16 or float64; channels_last, or it is copied.
        weight: (Cout, Cin / groups, 1, 1), of x's dtype.
        stride: 1 or 2.
        groups: of channels.

    Returns:
        (N, Cout, ceil(H / stride), ceil(W / stride)) in x's dtype, channels_last.

    Raises:
        ValueError: shapes, dtypes, devices or numbers do not fit; the message names the argument.
        mlaan_kernels.choice.TritonUnavailableError: "triton" was asked for and cannot run.
    """
    _check_convolution(x, weight, stride, groups)
    if not use_triton("conv1x1", implementation, x):
        return reference.conv1x1(x, weight, stride=stride, groups=groups)
    from mlaan_kernels.conv1x1 import autograd

    return autograd.conv1x1(_dense(x), weight, stride=stride, groups=groups)


def _check_convolution(x: Tensor, weight: Tensor, stride: int, groups: int) -> None:
    check_map("x", x)
    check_weight(weight, x, groups, stride)
    if x.shape[1] != weight.shape[1] * groups:
        raise ValueError(
            f"x has {x.shape[1]} channels: give {weight.shape[1] * groups}, "
            f"as weight has {weight.shape[1]} in each of {groups} groups"
        )


def _check_input_shape(shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    if len(shape) != 4 or min(shape) < 1:
        raise ValueError(f"input_shape is {tuple(shape)}: give (N, Cin, H, W), none of them 0")
    return tuple(shape)  # pyright: ignore[reportReturnType]


def _dense(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last)


def _dense_norm(norm: Norm | None) -> Norm | None:
    return None if norm is None else Norm(*(values.contiguous() for values in norm))
