"""How much of a map one program has in hand."""

from typing import NamedTuple

PROGRAMS = 132 * 8
"""Programs that a large problem is split into: a few for each multiprocessor of an H100."""

NORM = {"BLOCK_T": 512, "BLOCK_C": 8}
"""Few programs and a chain of loads: a program takes hundreds of tiles at once."""

NORM_WARPS = 8


def cdiv(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)


class Blocks(NamedTuple):
    """Rows and columns that a program has in hand at a time."""

    BLOCK_M: int
    BLOCK_C: int


BLOCKS = Blocks(32, 64)
"""16 numbers for each of 128 threads; 64 halves are the 128 bytes of a cache line, read whole."""

HALF = Blocks(16, 64)
"""Where the whole would not fit the registers."""


def reduce_blocks(groups: int, members: int) -> Blocks:
    """Two cotangents have twice the sums."""
    return BLOCKS if groups == members == 1 else HALF


def tile_rows(rows: int, slices: int, channels: int) -> int:
    """Rows of a tile, so that there are about PROGRAMS programs."""
    tiles = max(1, PROGRAMS // (slices * cdiv(channels, BLOCKS.BLOCK_C)))
    return max(1, cdiv(cdiv(rows, tiles), BLOCKS.BLOCK_M)) * BLOCKS.BLOCK_M
