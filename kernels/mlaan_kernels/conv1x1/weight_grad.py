"""dweight = dy^T @ prologue(x), each run of rows by programs of its own.

Legend: M rows of dy, O output channels of one group, I input channels of one group; S slices, R runs of a slice.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from mlaan_kernels import launching
from mlaan_kernels.conv1x1 import kernels
from mlaan_kernels.conv1x1.kernels import Setting, input_row, normalised
from mlaan_kernels.conv1x1.tiles import ceil, weight_split


@triton.jit(do_not_specialize=["rows", "run", "groups", "out_area", "out_width", "in_area", "width"])
def weight_grad_kernel(
    dy_ptr,
    x_ptr,
    out_ptr,
    mean_ptr,
    scale_ptr,
    bias_ptr,
    rows,
    run,
    in_channels,
    out_channels,
    groups,
    out_area,
    out_width,
    in_area,
    width,
    NORM: tl.constexpr,
    STRIDE: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_M: tl.constexpr,
    PRECISION: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    # Tiles vary fastest: neighbours read the same rows while the L2 cache holds them.
    tiles_in = tl.cdiv(in_channels, BLOCK_I)
    tiles_out = tl.cdiv(out_channels, BLOCK_O)
    i_I = tl.program_id(0) % tiles_in * BLOCK_I + tl.arange(0, BLOCK_I)
    o_O = tl.program_id(0) // tiles_in % tiles_out * BLOCK_O + tl.arange(0, BLOCK_O)
    inside_I = i_I < in_channels
    inside_O = o_O < out_channels
    group = tl.program_id(0) // (tiles_in * tiles_out) % groups
    number = tl.program_id(0) // (tiles_in * tiles_out * groups)  # of the run
    runs = tl.cdiv(rows, run)
    part = number // runs  # the slice
    begin = number % runs * run
    end = tl.minimum(begin + run, rows)
    channel_I = group * in_channels + i_I
    x_I = x_ptr + part.to(tl.int64) * (rows // out_area) * in_area * (groups * in_channels) + channel_I
    dy_O = dy_ptr + part.to(tl.int64) * rows * (groups * out_channels) + group * out_channels + o_O
    if NORM:
        slice_I = part * (groups * in_channels) + channel_I
        mean_I = tl.load(mean_ptr + slice_I, mask=inside_I, other=0.0)
        scale_I = tl.load(scale_ptr + slice_I, mask=inside_I, other=0.0)
        bias_I = tl.load(bias_ptr + channel_I, mask=inside_I, other=0.0)
    acc_OI = tl.zeros((BLOCK_O, BLOCK_I), tl.float32)
    for start in range(begin, end, BLOCK_M):
        row_M = start + tl.arange(0, BLOCK_M)
        inside_M = row_M < end
        read_M = input_row(row_M, out_area, out_width, in_area, width, STRIDE)
        dy_M = row_M.to(tl.int64) * (groups * out_channels)
        x_M = read_M.to(tl.int64) * (groups * in_channels)
        dy_MO = tl.load(dy_O[None, :] + dy_M[:, None], mask=inside_M[:, None] & inside_O[None, :], other=0.0)
        a_MI = tl.load(x_I[None, :] + x_M[:, None], mask=inside_M[:, None] & inside_I[None, :], other=0.0)
        if NORM:
            a_MI = normalised(a_MI, mean_I, scale_I, bias_I)
        acc_OI = launching.dot(tl.trans(dy_MO), a_MI, acc_OI, PRECISION, INTERPRETED)
    out_O = out_ptr + (number.to(tl.int64) * (groups * out_channels) + group * out_channels + o_O) * in_channels
    tl.store(out_O[:, None] + i_I[None, :], acc_OI, mask=inside_O[:, None] & inside_I[None, :])


SETTINGS: dict[tuple[int, tuple[int, int]], list[Setting]] = {
    (2, (128, 128)): [({"BLOCK_M": 64}, 8, 3)],
    (2, (128, 64)): [({"BLOCK_M": 64}, 4, 3)],
    (2, (64, 128)): [({"BLOCK_M": 64}, 4, 3)],
    (2, (64, 64)): [({"BLOCK_M": 64}, 4, 3)],
    (4, (64, 64)): [({"BLOCK_M": 16}, 8, 3)],
}
"""By the bytes of an element, and BLOCK_O and BLOCK_I."""

KEY = ("in_channels", "out_channels", "groups", "NORM", "STRIDE", "BLOCK_O", "BLOCK_I")
_tuned = {
    form: launching.autotuned(kernels.configs(settings), KEY)(weight_grad_kernel) for form, settings in SETTINGS.items()
}


def weight_grad(
    dy: Tensor, x: Tensor, norm: tuple[Tensor, Tensor, Tensor] | None, stride: int, groups: int, slices: int
) -> Tensor:
    """(Cout, Cin / groups, 1, 1) in float32; every run writes a sum of its own, and PyTorch adds them up.

    Args:
        dy, x: dense channels_last.
        norm: its mean, scale and bias.
    """
    images, channels, height, width = x.shape
    out_height, out_width = dy.shape[2:]
    in_channels, out_channels = channels // groups, dy.shape[1] // groups
    rows = images // slices * out_height * out_width
    split = weight_split(rows, slices, out_channels, in_channels, groups, x.element_size())
    tiles = groups * ceil(out_channels, split.out_channels) * ceil(in_channels, split.in_channels)
    parts = x.new_empty((slices * split.runs, dy.shape[1], in_channels, 1, 1), dtype=torch.float32)
    launching.launch(
        _tuned[x.element_size(), split[:2]],
        (parts.shape[0] * tiles,),
        dy,
        x,
        parts,
        *(norm or (None, None, None)),
        rows,
        split.run,
        in_channels,
        out_channels,
        groups,
        out_height * out_width,
        out_width,
        height * width,
        width,
        NORM=norm is not None,
        STRIDE=stride,
        BLOCK_O=split.out_channels,
        BLOCK_I=split.in_channels,
        PRECISION=launching.dot_precision(x.dtype),
        INTERPRETED=launching.INTERPRETED,
    )
    return parts[0] if len(parts) == 1 else parts.sum(0)
