"""The Triton launchers as operators of torch.library."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mlaan_kernels.batchnorm_act import triton

statistics = torch.library.custom_op("mlaan::batchnorm_act_statistics", triton.statistics, mutates_args=())
make_norm = torch.library.custom_op(
    "mlaan::batchnorm_act_norm", triton.make_norm, mutates_args=("running_mean", "running_var")
)
forward = torch.library.custom_op("mlaan::batchnorm_act_forward", triton.forward, mutates_args=())
reduce = torch.library.custom_op("mlaan::batchnorm_act_reduce", triton.reduce, mutates_args=())
input_grad = torch.library.custom_op("mlaan::batchnorm_act_input_grad", triton.input_grad, mutates_args=("out",))


@statistics.register_fake
def _(c: Tensor, slices: int) -> tuple[Tensor, Tensor]:
    rows = c.numel() // c.shape[1] // slices
    tiles = -(-rows // triton.tile_rows(rows, slices, c.shape[1]))
    shape = (slices, tiles, c.shape[1])
    return c.new_empty(shape, dtype=torch.float32), c.new_empty(shape, dtype=torch.float32)


@make_norm.register_fake
def _(sums: Tensor, squares: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor]:
    shape = (sums.shape[0], sums.shape[2])
    return sums.new_empty(shape), sums.new_empty(shape), sums.new_empty(shape)


@forward.register_fake
def _(c: Tensor, *others: Any) -> list[Tensor]:
    *_, write, pool, members, _ = others
    out = (c.shape[0], c.shape[1] // members, *c.shape[2:])
    y = torch.empty(out, dtype=c.dtype, device=c.device, memory_format=torch.channels_last)
    return ([y] if write else []) + ([c.new_empty(out[:2], dtype=torch.float32)] if pool else [])


@reduce.register_fake
def _(
    dense: Sequence[Tensor | None], pooled: Sequence[Tensor | None], c: Tensor, mean: Tensor, *others: Any
) -> list[Tensor]:
    residual_mean, write = others[4], others[9]
    sums = mean.new_empty(len(dense), mean.shape[0], 2 if residual_mean is None else 3, c.shape[1])
    return [sums] + ([_stacked(c, len(dense))] if write else [])


def _stacked(c: Tensor, groups: int) -> Tensor:
    shape = (groups * c.shape[0], *c.shape[1:])
    return torch.empty(shape, dtype=c.dtype, device=c.device, memory_format=torch.channels_last)


@input_grad.register_fake
def _(out: Tensor, *others: Any) -> None:
    return None
