"""What the three matrix kernels share: rows of a strided convolution, the BatchNorm at their input, their configs.

Legend: M rows (pixels of all images), K channels that are summed over, N channels of the result; g = group.
"""

from collections.abc import Iterable

import triton
import triton.language as tl
from torch import Tensor

from mlaan_kernels.conv1x1.tiles import Tile


@triton.jit
def input_row(row, out_area, out_width, in_area, width, STRIDE: tl.constexpr):
    """The input's row that the output's row `row` reads, both counted from the first of the slice."""
    if STRIDE == 1:
        return row
    pixel = row % out_area
    return row // out_area * in_area + pixel // out_width * (STRIDE * width) + pixel % out_width * STRIDE


@triton.jit
def normalised(x_MK, mean_K, scale_K, bias_K):
    """relu((x - mean) * scale + bias), rounded as if it had been written to memory; NaN stays NaN."""
    z_MK = (x_MK.to(tl.float32) - mean_K[None, :]) * scale_K[None, :] + bias_K[None, :]
    return tl.maximum(z_MK, 0.0, propagate_nan=tl.PropagateNan.ALL).to(x_MK.dtype)


@triton.jit
def coalesced(x_MN, INTERPRETED: tl.constexpr):
    """x, spread over the threads as memory wants it, a few neighbouring columns to each.

    Otherwise what follows a product is done as the tensor cores spread it, many columns to a thread: whatever is kept
    for every column then fills the registers. Triton takes no layout across a sum, here of one element each.
    """
    return x_MN if INTERPRETED else tl.sum(x_MN[:, :, None], 2)


Setting = tuple[dict[str, int], int, int]
"""Block sizes, warps and stages of one config."""

PRODUCT: dict[tuple[int, Tile], list[Setting]] = {
    (2, Tile(128, 128)): [({"BLOCK_K": 64}, 8, 3), ({"BLOCK_K": 32}, 8, 3)],
    (2, Tile(128, 64)): [({"BLOCK_K": 64}, 8, 2)],
    (2, Tile(64, 64)): [({"BLOCK_K": 64}, 4, 4)],
    (4, Tile(64, 64)): [({"BLOCK_K": 16}, 8, 3)],
}
"""Settings of the kernels whose result has M rows, by the bytes of an element and the tile."""


def configs(settings: Iterable[Setting]) -> list[triton.Config]:
    return [triton.Config(dict(blocks), num_warps=warps, num_stages=stages) for blocks, warps, stages in settings]


def matrix(weight: Tensor) -> Tensor:
    """(Cout, Cin / groups, 1, 1) as dense rows of Cin / groups."""
    return weight.flatten(1).contiguous()
