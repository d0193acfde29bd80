"""How much of a map one program has in hand, by the number of channels."""

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
    """Rows and columns that a program has in hand at a time: 16 numbers for each of 128 threads."""

    BLOCK_M: int
    BLOCK_C: int


BLOCKS = (Blocks(128, 16), Blocks(64, 32), Blocks(32, 64), Blocks(16, 128))


def blocks_for(channels: int) -> Blocks:
    """The narrowest block that holds all channels, else the widest."""
    return next((blocks for blocks in BLOCKS if channels <= blocks.BLOCK_C), BLOCKS[-1])


def reduced(blocks: Blocks, groups: int) -> Blocks:
    """Two cotangents have twice the sums in registers: half the rows."""
    return blocks if groups == 1 else Blocks(blocks.BLOCK_M // 2, blocks.BLOCK_C)


def tile_rows(rows: int, slices: int, channels: int) -> int:
    """Rows of a tile, so that there are about PROGRAMS programs."""
    blocks = blocks_for(channels)
    tiles = max(1, PROGRAMS // (slices * cdiv(channels, blocks.BLOCK_C)))
    return max(1, cdiv(cdiv(rows, tiles), blocks.BLOCK_M)) * blocks.BLOCK_M
