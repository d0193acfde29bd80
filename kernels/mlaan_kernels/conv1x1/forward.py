"""y = prologue(x) @ weight^T, with the statistics of y on the way out.

Legend: M rows of y, K input channels of one group, N output channels of one group; S slices, T tiles of a slice.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from mlaan_kernels import launching
from mlaan_kernels.conv1x1 import kernels
from mlaan_kernels.conv1x1.kernels import coalesced, input_row, normalised
from mlaan_kernels.conv1x1.tiles import ceil, row_tile


@triton.jit(do_not_specialize=["rows", "groups", "out_area", "out_width", "in_area", "width"])
def forward_kernel(
    x_ptr,
    weight_ptr,
    y_ptr,
    mean_ptr,
    scale_ptr,
    bias_ptr,
    sums_ptr,
    squares_ptr,
    rows,
    in_channels,
    out_channels,
    groups,
    out_area,
    out_width,
    in_area,
    width,
    NORM: tl.constexpr,
    STATISTICS: tl.constexpr,
    STRIDE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    # Columns vary fastest, then groups: neighbours read the same rows while the L2 cache holds them.
    blocks = tl.cdiv(out_channels, BLOCK_N)
    n_N = tl.program_id(0) % blocks * BLOCK_N + tl.arange(0, BLOCK_N)
    inside_N = n_N < out_channels
    group = tl.program_id(0) // blocks % groups
    tile = tl.program_id(0) // (blocks * groups)
    tiles = tl.cdiv(rows, BLOCK_M)
    part = tile // tiles  # the slice
    row_M = tile % tiles * BLOCK_M + tl.arange(0, BLOCK_M)
    inside_M = row_M < rows
    read_M = input_row(row_M, out_area, out_width, in_area, width, STRIDE)
    x_base = part.to(tl.int64) * (rows // out_area) * in_area * (groups * in_channels) + group * in_channels
    x_M = x_ptr + x_base + read_M.to(tl.int64) * (groups * in_channels)
    y_M = y_ptr + (part.to(tl.int64) * rows + row_M) * (groups * out_channels) + group * out_channels
    acc_MN = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for k in range(0, in_channels, BLOCK_K):
        k_K = k + tl.arange(0, BLOCK_K)
        inside_K = k_K < in_channels
        a_MK = tl.load(x_M[:, None] + k_K[None, :], mask=inside_M[:, None] & inside_K[None, :], other=0.0)
        if NORM:
            channel_K = group * in_channels + k_K
            slice_K = part * (groups * in_channels) + channel_K
            mean_K = tl.load(mean_ptr + slice_K, mask=inside_K, other=0.0)
            scale_K = tl.load(scale_ptr + slice_K, mask=inside_K, other=0.0)
            bias_K = tl.load(bias_ptr + channel_K, mask=inside_K, other=0.0)
            a_MK = normalised(a_MK, mean_K, scale_K, bias_K)
        w_N = weight_ptr + (group * out_channels + n_N) * in_channels
        w_KN = tl.load(w_N[None, :] + k_K[:, None], mask=inside_K[:, None] & inside_N[None, :], other=0.0)
        acc_MN = launching.dot(a_MK, w_KN, acc_MN, PRECISION, INTERPRETED)
    y_MN = coalesced(acc_MN.to(y_ptr.dtype.element_ty), INTERPRETED)
    inside_MN = inside_M[:, None] & inside_N[None, :]
    tl.store(y_M[:, None] + n_N[None, :], y_MN, mask=inside_MN)
    if STATISTICS:
        value_MN = tl.where(inside_MN, y_MN.to(tl.float32), 0.0)
        sum_N = tl.sum(value_MN, 0)
        count = tl.minimum(rows - tile % tiles * BLOCK_M, BLOCK_M).to(tl.float32)
        distance_MN = tl.where(inside_MN, value_MN - (sum_N / count)[None, :], 0.0)
        out_N = tile.to(tl.int64) * (groups * out_channels) + group * out_channels + n_N
        tl.store(sums_ptr + out_N, sum_N, mask=inside_N)
        tl.store(squares_ptr + out_N, tl.sum(distance_MN * distance_MN, 0), mask=inside_N)


KEY = ("in_channels", "out_channels", "groups", "NORM", "STATISTICS", "STRIDE", "BLOCK_M", "BLOCK_N")
_tuned = {
    form: launching.autotuned(kernels.configs(settings), KEY)(forward_kernel)
    for form, settings in kernels.PRODUCT.items()
}


def forward(
    x: Tensor,
    weight: Tensor,
    norm: tuple[Tensor, Tensor, Tensor] | None,
    stride: int,
    groups: int,
    slices: int,
    statistics: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """y, and with `statistics` the sums and squares of `Partials`, whose tile is that of `row_tile`.

    Args:
        x: dense channels_last.
        norm: its mean, scale and bias.
    """
    images, in_channels, height, width = x.shape
    out_channels = weight.shape[0]
    shape = (images, out_channels, ceil(height, stride), ceil(width, stride))
    y = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    rows = images // slices * shape[2] * shape[3]
    tile = row_tile(rows, slices, out_channels // groups, groups, x.element_size())
    tiles = ceil(rows, tile.rows)
    sums, squares = (
        x.new_empty((slices, tiles, out_channels), dtype=torch.float32) if statistics else None for _ in range(2)
    )
    launching.launch(
        _tuned[x.element_size(), tile],
        (slices * tiles * groups * ceil(out_channels // groups, tile.columns),),
        x,
        kernels.matrix(weight),
        y,
        *(norm or (None, None, None)),
        sums,
        squares,
        rows,
        in_channels // groups,
        out_channels // groups,
        groups,
        shape[2] * shape[3],
        shape[3],
        height * width,
        width,
        NORM=norm is not None,
        STATISTICS=statistics,
        STRIDE=stride,
        BLOCK_M=tile.rows,
        BLOCK_N=tile.columns,
        PRECISION=launching.dot_precision(x.dtype),
        INTERPRETED=launching.INTERPRETED,
    )
    return y, sums, squares
