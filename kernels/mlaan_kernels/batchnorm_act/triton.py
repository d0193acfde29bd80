"""Launches the Triton kernels. Weights, biases and numbers per channel are float32; maps of one call share a dtype."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mlaan_kernels import launching
from mlaan_kernels.batchnorm_act.backward_kernels import input_grad_kernel, reduce_kernel
from mlaan_kernels.batchnorm_act.blocks import BLOCKS, HALF, NORM, NORM_WARPS, cdiv, reduce_blocks, tile_rows
from mlaan_kernels.batchnorm_act.forward_kernels import forward_kernel, norm_kernel, statistics_kernel, sum_kernel
from mlaan_kernels.batchnorm_act.variants import variants

__all__ = ["forward", "input_grad", "make_norm", "reduce", "statistics", "tile_rows", "variants"]


class _Split(NamedTuple):
    """How the rows of a map are shared out among programs."""

    rows: int
    tile: int
    tiles: int
    grid: tuple[int, int]


def _split(shape: Sequence[int], slices: int, tile: int | None = None) -> _Split:
    images, channels, height, width = shape
    rows = images * height * width // slices
    tile = tile or tile_rows(rows, slices, channels)
    tiles = cdiv(rows, tile)
    return _Split(rows, tile, tiles, (slices * tiles, cdiv(channels, BLOCKS.BLOCK_C)))


def _floor(relu: bool) -> float:
    """What is not above it a ReLU cuts off."""
    return 0.0 if relu else -math.inf


def statistics(c: Tensor, slices: int) -> tuple[Tensor, Tensor]:
    """Sums and centred squares (S, T, C) of each tile; the tiles are `tile_rows` long."""
    split = _split(c.shape, slices)
    sums, squares = (c.new_empty(slices, split.tiles, c.shape[1], dtype=torch.float32) for _ in range(2))
    launching.launch(
        statistics_kernel,
        split.grid,
        *(c, sums, squares, split.rows, split.tile, split.tiles, c.shape[1]),
        **BLOCKS._asdict(),
    )
    return sums, squares


def make_norm(
    sums: Tensor,
    squares: Tensor,
    weight: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    tile: int,
    rows: int,
    eps: float,
    momentum: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, invstd and scale (S, C); the running statistics, if given, move once for each slice, in order."""
    slices, tiles, channels = sums.shape
    out = [sums.new_empty(slices, channels) for _ in range(3)]
    launching.launch(
        norm_kernel,
        (cdiv(channels, NORM["BLOCK_C"]),),
        *(sums, squares, weight, running_mean, running_var, *out),
        *(slices, rows, tile, tiles, channels, eps, momentum),
        RUNNING=running_mean is not None,
        num_warps=NORM_WARPS,
        **NORM,
    )
    return out[0], out[1], out[2]


def forward(
    c: Tensor,
    mean: Tensor,
    scale: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    residual_mean: Tensor | None,
    residual_scale: Tensor | None,
    residual_bias: Tensor | None,
    relu: bool,
    write: bool,
    pool: bool,
    members: int,
    width: int,
) -> list[Tensor]:
    """[y] if `write`, [mean of each image's y (N, C)] if `pool`, or both."""
    n, channels, height, last = c.shape
    out = (n, channels // members, height, last)
    split = _split(out, mean.shape[0], tile=height * last if pool else None)
    y = torch.empty(out, dtype=c.dtype, device=c.device, memory_format=torch.channels_last) if write else None
    pooled = c.new_empty(out[:2], dtype=torch.float32) if pool else None
    maps = (c, mean, scale, bias, residual, residual_mean, residual_scale, residual_bias, y, pooled)
    numbers = (split.rows, split.tile, split.tiles, channels)
    flags = {"WRITE": write, "POOL": pool}
    if members == 1:
        launching.launch(forward_kernel, split.grid, *maps, *numbers, _floor(relu), **flags, **BLOCKS._asdict())
    else:
        pair = {"MEMBERS": members} | HALF._asdict()
        launching.launch(sum_kernel, split.grid, *maps, *numbers, width, **flags, **pair)
    return [tensor for tensor in (y, pooled) if tensor is not None]


def reduce(
    dense: Sequence[Tensor | None],
    pooled: Sequence[Tensor | None],
    c: Tensor,
    mean: Tensor,
    invstd: Tensor,
    scale: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    residual_mean: Tensor | None,
    residual_invstd: Tensor | None,
    residual_scale: Tensor | None,
    residual_bias: Tensor | None,
    relu: bool,
    write: bool,
    members: int,
    width: int,
) -> list[Tensor]:
    """[sums (G, S, K, C)], K = 3 with a residual to normalise, else 2; and dz (G * N, C, H, W) if `write`."""
    groups, slices, (n, channels, height, last) = len(dense), mean.shape[0], c.shape
    split = _split(c.shape, slices)
    kinds = 2 if residual_mean is None else 3
    sums = mean.new_empty(groups, slices, split.tiles, kinds, channels)
    dz = None
    if write:
        dz = torch.empty((groups * n, *c.shape[1:]), dtype=c.dtype, device=c.device, memory_format=torch.channels_last)
    parts = sum((dense[g] is not None) << g | (pooled[g] is not None) << g + 2 for g in range(groups))
    maps = [c if d is None else d for d in dense]  # what is absent is not read, but must be an address
    means = [mean if p is None else p for p in pooled] if parts >> 2 else [None]
    if not relu and residual_mean is None:
        residual = None  # only the mask needs a plain one
    launching.launch(
        reduce_kernel,
        split.grid,
        *(maps[0], maps[-1], means[0], means[-1], c, mean, invstd, scale, bias),
        *(residual, residual_mean, residual_invstd, residual_scale, residual_bias, dz, sums),
        *(n * height * last, height * last, split.rows, split.tile, split.tiles, channels, width, parts, _floor(relu)),
        **{"GROUPS": groups, "MEMBERS": members} | reduce_blocks(groups, members)._asdict(),
    )
    return [sums.sum(2)] + ([] if dz is None else [dz])


def input_grad(
    out: Tensor,
    dz: Tensor,
    c: Tensor,
    mean: Tensor,
    invstd: Tensor,
    scale: Tensor,
    bias: Tensor,
    sums: Tensor | None,
    relu: bool,
) -> None:
    """Write dc (G * N, C, H, W) into `out`, which may be dz itself."""
    groups, slices = dz.shape[0] // c.shape[0], mean.shape[0]
    split = _split(c.shape, slices)
    launching.launch(
        input_grad_kernel,
        split.grid,
        *(dz, c, mean, invstd, scale, bias, sums, out, c.numel() // c.shape[1]),
        *(slices, split.rows, split.tile, split.tiles, c.shape[1], _floor(relu)),
        **{"GROUPS": groups} | BLOCKS._asdict(),
    )
