"""A BatchNorm as kernels see it: numbers per channel, and the sums that they come from."""

from typing import NamedTuple

from torch import Tensor


class Norm(NamedTuple):
    """z = (c - mean) * scale + bias for a convolution's output c.

    The batch may be S slices, one after the other and equally long, each normalised by itself (S heads joined along
    the batch); S is 1 otherwise. float32, or float64 for float64 activations.

    Attributes:
        mean: (S, C).
        invstd: (S, C), 1 / sqrt(variance + eps).
        scale: (S, C), weight * invstd.
        bias: (C,).
    """

    mean: Tensor
    invstd: Tensor
    scale: Tensor
    bias: Tensor

    @property
    def slices(self) -> int:
        return self.mean.shape[0]


class Partials(NamedTuple):
    """Sums over tiles of rows, out of which a BatchNorm's statistics come without another look at the values.

    A row is one pixel of one image. Tile t of a slice has its rows t * tile to min((t + 1) * tile, rows) - 1.

    Attributes:
        sums: (S, T, C), sum of the tile's values.
        squares: (S, T, C), sum of the squared distances from the tile's own mean: no cancellation, however far the
            mean is from 0.
        tile: rows of a full tile.
        rows: rows of a slice.
    """

    sums: Tensor
    squares: Tensor
    tile: int
    rows: int
