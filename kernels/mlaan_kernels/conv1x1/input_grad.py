"""dx = dy @ weight; behind a BatchNorm and ReLU it is masked on the way out and summed as that BatchNorm needs it.

Legend: M rows of dy, K output channels of one group (summed over), N input channels of one group; G cotangents,
S slices, T tiles of a slice.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from mlaan_kernels import launching
from mlaan_kernels.conv1x1 import kernels
from mlaan_kernels.conv1x1.kernels import coalesced, input_row
from mlaan_kernels.conv1x1.tiles import ceil, row_tile


@triton.jit(do_not_specialize=["rows", "groups", "slices", "cotangents", "out_area", "out_width", "in_area", "width"])
def input_grad_kernel(
    dy_ptr,
    weight_ptr,
    dx_ptr,
    c_ptr,
    mean_ptr,
    invstd_ptr,
    scale_ptr,
    bias_ptr,
    sums_ptr,
    rows,
    in_channels,
    out_channels,
    groups,
    slices,
    cotangents,
    out_area,
    out_width,
    in_area,
    width,
    NORM: tl.constexpr,
    ADD: tl.constexpr,
    STRIDE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    # Columns vary fastest, then groups, then cotangents: neighbours read the same rows of dy, or of c, while the L2
    # cache holds them.
    blocks = tl.cdiv(in_channels, BLOCK_N)
    n_N = tl.program_id(0) % blocks * BLOCK_N + tl.arange(0, BLOCK_N)
    inside_N = n_N < in_channels
    group = tl.program_id(0) // blocks % groups
    number = tl.program_id(0) // (blocks * groups)
    tiles = tl.cdiv(rows, BLOCK_M)
    tile = number // cotangents % tiles
    part = number // (cotangents * tiles)  # slice of c
    stacked = number % cotangents * slices + part  # slice of the stacked cotangents
    row_M = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    inside_M = row_M < rows
    channels = groups * in_channels
    dy_M = (stacked.to(tl.int64) * rows + row_M) * (groups * out_channels) + group * out_channels
    in_rows = rows // out_area * in_area
    write_M = input_row(row_M, out_area, out_width, in_area, width, STRIDE)
    dx_M = (stacked.to(tl.int64) * in_rows + write_M) * channels + group * in_channels
    c_M = (part.to(tl.int64) * in_rows + write_M) * channels + group * in_channels
    acc_MN = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for k in range(0, out_channels, BLOCK_K):
        k_K = k + tl.arange(0, BLOCK_K)
        inside_K = k_K < out_channels
        mask_MK = inside_M[:, None] & inside_K[None, :]
        dy_MK = tl.load(dy_ptr + dy_M[:, None] + k_K[None, :], mask=mask_MK, other=0.0)
        w_K = weight_ptr + (group * out_channels + k_K) * in_channels
        w_KN = tl.load(w_K[:, None] + n_N[None, :], mask=inside_K[:, None] & inside_N[None, :], other=0.0)
        acc_MN = launching.dot(dy_MK, w_KN, acc_MN, PRECISION, INTERPRETED)
    inside_MN = inside_M[:, None] & inside_N[None, :]
    dx_MN = dx_ptr + dx_M[:, None] + n_N[None, :]
    if ADD:
        acc_MN += tl.load(dx_MN, mask=inside_MN, other=0.0).to(tl.float32)
    dz_MN = coalesced(acc_MN.to(dx_ptr.dtype.element_ty), INTERPRETED)
    if NORM:
        channel_N = group * in_channels + n_N
        slice_N = part * channels + channel_N
        mean_N = tl.load(mean_ptr + slice_N, mask=inside_N, other=0.0)
        invstd_N = tl.load(invstd_ptr + slice_N, mask=inside_N, other=0.0)
        scale_N = tl.load(scale_ptr + slice_N, mask=inside_N, other=0.0)
        bias_N = tl.load(bias_ptr + channel_N, mask=inside_N, other=0.0)
        c_MN = tl.load(c_ptr + c_M[:, None] + n_N[None, :], mask=inside_MN, other=0.0).to(tl.float32)
        distance_MN = c_MN - mean_N[None, :]
        active_MN = distance_MN * scale_N[None, :] + bias_N[None, :] > 0
        dz_MN = tl.where(active_MN, dz_MN.to(tl.float32), 0.0)
        out_N = (stacked * tiles + tile).to(tl.int64) * (2 * channels) + channel_N
        tl.store(sums_ptr + out_N, tl.sum(dz_MN, 0), mask=inside_N)
        weighted_N = tl.sum(dz_MN * distance_MN, 0) * invstd_N
        tl.store(sums_ptr + out_N + channels, weighted_N, mask=inside_N)
    tl.store(dx_MN, dz_MN.to(dx_ptr.dtype.element_ty), mask=inside_MN)


KEY = ("in_channels", "out_channels", "groups", "NORM", "ADD", "STRIDE", "BLOCK_M", "BLOCK_N")
_tuned = {
    form: launching.autotuned(kernels.configs(settings), KEY)(input_grad_kernel)
    for form, settings in kernels.PRODUCT.items()
}
# Tuning runs a kernel many times over, and this one must add to dx once.
_tuned_add = {
    form: launching.autotuned(kernels.configs(settings), KEY, restore=["dx_ptr"])(input_grad_kernel)
    for form, settings in kernels.PRODUCT.items()
}


def input_grad(
    dy: Tensor,
    weight: Tensor,
    dx: Tensor,
    c: Tensor | None,
    norm: tuple[Tensor, Tensor, Tensor, Tensor] | None,
    stride: int,
    groups: int,
    add: bool,
) -> Tensor | None:
    """Writes dx, or with `add` adds to it; with stride 2 only the rows that the convolution reads.

    Args:
        dy, dx, c: dense channels_last.
        norm: mean, invstd, scale and bias of the BatchNorm that c goes into.

    Returns:
        With `norm` its sums, (G, S, 2, Cin).
    """
    in_channels, height, width = dx.shape[1:]
    out_channels, out_height, out_width = dy.shape[1:]
    slices = 1 if norm is None else norm[0].shape[0]
    cotangents = 1 if c is None else dy.shape[0] // c.shape[0]
    stacked = cotangents * slices
    rows = dy.shape[0] // stacked * out_height * out_width
    tile = row_tile(rows, stacked, in_channels // groups, groups, dy.element_size())
    tiles = ceil(rows, tile.rows)
    sums = None if norm is None else dy.new_empty((stacked, tiles, 2, in_channels), dtype=torch.float32)
    launching.launch(
        (_tuned_add if add else _tuned)[dy.element_size(), tile],
        (stacked * tiles * groups * ceil(in_channels // groups, tile.columns),),
        dy,
        kernels.matrix(weight),
        dx,
        c,
        *(norm or (None,) * 4),
        sums,
        rows,
        in_channels // groups,
        out_channels // groups,
        groups,
        slices,
        cotangents,
        out_height * out_width,
        out_width,
        height * width,
        width,
        NORM=norm is not None,
        ADD=add,
        STRIDE=stride,
        BLOCK_M=tile.rows,
        BLOCK_N=tile.columns,
        PRECISION=launching.dot_precision(dy.dtype),
        INTERPRETED=launching.INTERPRETED,
    )
    return None if sums is None else sums.sum(1).view(-1, slices, 2, in_channels)
