"""The operator in plain PyTorch, on any device and in any precision: the judge in tests, and the CPU's form."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.amp.autocast_mode import is_autocast_available
from torch.nn import functional as F
from torch.nn.grad import conv2d_input, conv2d_weight

from mlaan_kernels.norm import Norm, Partials


def conv1x1_forward(
    x: Tensor, weight: Tensor, norm: Norm | None, *, stride: int, groups: int, statistics: bool, slices: int
) -> tuple[Tensor, Partials | None]:
    """See `mlaan_kernels.conv1x1.conv1x1_forward`; the statistics are those of one tile per slice."""
    y = _product(_prologue(x, norm), weight, stride, groups)
    if not statistics:
        return y, None
    values = y.to(_exact(y)).unflatten(0, (slices, -1))
    rows = values[0].numel() // y.shape[1]
    sums = values.sum((1, 3, 4))
    squares = (values - (sums / rows)[:, None, :, None, None]).square().sum((1, 3, 4))
    return y, Partials(sums[:, None], squares[:, None], tile=rows, rows=rows)


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
    stacked = dy.shape[0] // input_shape[0]
    exact = _exact(dy)
    with _as_given(dy.device):
        shape = (dy.shape[0], *input_shape[1:])
        gradient = conv2d_input(shape, weight.to(exact), dy.to(exact), stride=stride, groups=groups)
    if add is not None:
        return add.copy_(gradient + add.to(exact)), None
    if norm is None or norm_input is None:
        return _rounded(gradient, dy), None
    repeated = norm_input.to(exact).repeat(stacked, 1, 1, 1)
    distance = repeated - _per_image(norm.mean, norm_input).repeat(stacked, 1, 1, 1)
    active = distance * _per_image(norm.scale, norm_input).repeat(stacked, 1, 1, 1) + norm.bias[:, None, None] > 0
    dz = _rounded(gradient.where(active, 0), dy)
    normalised = distance * _per_image(norm.invstd, norm_input).repeat(stacked, 1, 1, 1)
    terms = torch.stack([dz.to(exact), dz.to(exact) * normalised])
    sums = terms.unflatten(1, (stacked, norm.slices, -1)).sum((3, 5, 6))
    return dz, sums.permute(1, 2, 0, 3).contiguous()


def conv1x1_weight_grad(dy: Tensor, x: Tensor, norm: Norm | None, *, stride: int, groups: int) -> Tensor:
    """See `mlaan_kernels.conv1x1.conv1x1_weight_grad`."""
    exact = _exact(x)
    shape = (dy.shape[1], x.shape[1] // groups, 1, 1)
    with _as_given(x.device):
        return conv2d_weight(_prologue(x, norm).to(exact), shape, dy.to(exact), stride=stride, groups=groups)


def conv1x1(x: Tensor, weight: Tensor, *, stride: int, groups: int) -> Tensor:
    """See `mlaan_kernels.conv1x1.conv1x1`; PyTorch's autograd differentiates it, as often as need be."""
    return _product(x, weight, stride, groups)


def _product(x: Tensor, weight: Tensor, stride: int, groups: int) -> Tensor:
    exact = _exact(x)
    with _as_given(x.device):
        return _rounded(F.conv2d(x.to(exact), weight.to(exact), stride=stride, groups=groups), x)


def _prologue(x: Tensor, norm: Norm | None) -> Tensor:
    if norm is None:
        return x
    distance = x.to(_exact(x)) - _per_image(norm.mean, x)
    return (distance * _per_image(norm.scale, x) + norm.bias[:, None, None]).relu().to(x.dtype)


def _per_image(values: Tensor, x: Tensor) -> Tensor:
    """(S, C) as (N, C, 1, 1): each image gets what belongs to its slice."""
    return values.repeat_interleave(x.shape[0] // values.shape[0], 0)[:, :, None, None]


def _exact(tensor: Tensor) -> torch.dtype:
    """The dtype to compute in."""
    return torch.promote_types(tensor.dtype, torch.float32)


def _rounded(values: Tensor, like: Tensor) -> Tensor:
    return values.to(like.dtype).contiguous(memory_format=torch.channels_last)


def _as_given(device: torch.device) -> AbstractContextManager[object]:
    """Autocast switched off, where the device knows it."""
    known = is_autocast_available(device.type)
    return torch.autocast(device.type, enabled=False) if known else nullcontext()
