"""How a call is cut into programs. It goes by shapes alone, so that results are the same on every GPU."""

from typing import NamedTuple

MULTIPROCESSORS = 132
"""Of an H100."""

RESIDENT = 2 * MULTIPROCESSORS
"""Programs that run at a time, at two to a multiprocessor: fewer leave some of them idle."""


class Tile(NamedTuple):
    """What one program makes of a product rows x reduction @ reduction x columns."""

    rows: int
    columns: int


TILES = (Tile(128, 128), Tile(128, 64), Tile(64, 64))
"""256 columns leave too few registers for a BatchNorm in front of the product."""


def row_tile(rows: int, slices: int, columns: int, groups: int, itemsize: int) -> Tile:
    """The largest tile of which there are still enough: large ones read their operands least often.

    Args:
        rows: of one slice; tiles never straddle slices.
        columns: of one group.
        itemsize: bytes of an element; of 4-byte ones only the smallest tile fits into the registers.
    """
    if itemsize > 2:
        return TILES[-1]
    widest = max(columns, 64)
    for tile in TILES:
        enough = slices * ceil(rows, tile.rows) * groups * ceil(columns, tile.columns) >= RESIDENT
        if tile.columns <= widest and enough:
            return tile
    return TILES[-1]


class Split(NamedTuple):
    """Tiles of the weight's gradient, and the runs of rows that are summed by programs of their own.

    Attributes:
        out_channels: of a tile.
        in_channels: of a tile.
        run: rows of a full run, a multiple of every block of rows.
        runs: of one slice.
    """

    out_channels: int
    in_channels: int
    run: int
    runs: int


def weight_split(rows: int, slices: int, out_channels: int, in_channels: int, groups: int, itemsize: int) -> Split:
    """Runs as long as they can be while all programs are resident at once; channels are those of one group."""
    out_block, in_block = (128 if channels > 64 and itemsize == 2 else 64 for channels in (out_channels, in_channels))
    tiles = groups * ceil(out_channels, out_block) * ceil(in_channels, in_block)
    wanted = max(1, RESIDENT // (tiles * slices))
    run = ceil(ceil(rows, wanted), 128) * 128
    return Split(out_block, in_block, run, ceil(rows, run))


def ceil(total: int, part: int) -> int:
    return -(-total // part)
