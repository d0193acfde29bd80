"""Sizes of the tiles, for the launches and for the list of variants."""

import math
from bisect import bisect_left
from collections.abc import Sequence
from typing import Any, NamedTuple

import triton

from mlaan_kernels import launching

POOL_BLOCKS = (32, 64, 128)
"""Channels of a tile; under 32, half-precision loads would leave parts of the memory's sectors unused."""

POOL_ELEMENTS = 4096
POOL_PROGRAMS = 512
"""Programs that are enough for the pool: with fewer it takes narrower tiles, to fill the chip."""

CLASS_BLOCKS = (16, 64, 128)
CLASS_ENDS = (16, 512)
"""Most classes for which the first and the second of `CLASS_BLOCKS` are taken."""

LOOP_BLOCKS = {False: (16, 64), True: (16,)}
"""Classes of one turn of the pooled gradient's loop, by whether it multiplies float32."""

ROW_BLOCKS = (16, 128, 1024)
ROW_ELEMENTS = 1024
BLOCK_B = 8
BLOCK_TALLY = 1024


def pool_constants(images: int, channels: int) -> dict[str, int]:
    """Tile of the pool."""
    fitting = [block for block in POOL_BLOCKS if images * count(channels, block) >= POOL_PROGRAMS]
    return pool_tile(max(fitting, default=POOL_BLOCKS[0]))


def pool_tile(block_C: int) -> dict[str, int]:
    """Tile of the pool with that many channels."""
    return {"BLOCK_P": POOL_ELEMENTS // block_C, "BLOCK_C": block_C}


def class_block(classes: int) -> int:
    """Classes of a tile of logits. All configs that are tried share it, since the partial sums are laid out by it."""
    return CLASS_BLOCKS[bisect_left(CLASS_ENDS, classes)]


def loop_block(classes: int, single: bool) -> int:
    """Classes that one turn of the pooled gradient's loop takes; divides `class_block`."""
    return min(class_block(classes), LOOP_BLOCKS[single][-1])


def row_constants(classes: int) -> dict[str, int]:
    """Tile of the pass over rows: as many rows as leave one tile about `ROW_ELEMENTS` logits."""
    block_S = ROW_BLOCKS[bisect_left(ROW_BLOCKS[:-1], classes)]
    return {
        "BLOCK_V": class_block(classes),
        "BLOCK_B": BLOCK_B,
        "BLOCK_S": block_S,
        "BLOCK_N": ROW_ELEMENTS // block_S,
    }


class Tuned(NamedTuple):
    """A matrix kernel and the configs that are tried for it."""

    kernel: Any
    configs: Sequence[triton.Config]

    def most_tiles(self, **sizes: int) -> int:
        """Tiles of the config with the most of them; `sizes` are the extents by the name of their block."""
        return max(
            math.prod(count(size, config.kwargs[name]) for name, size in sizes.items()) for config in self.configs
        )


def tuned(kernel: Any, half: Sequence[triton.Config], single: Sequence[triton.Config]) -> dict[bool, Tuned]:
    """The kernel by whether it multiplies float32, which takes smaller tiles: with large ones it spills registers.

    The images are not in the key: the last, shorter batch of an epoch shall not be tuned for by itself.
    """
    key = ["V", "C", "PRECISION"]
    return {
        False: Tuned(launching.autotuned(half, key)(kernel), half),
        True: Tuned(launching.autotuned(single, key)(kernel), single),
    }


def count(size: int, block: int) -> int:
    """Blocks that cover `size`."""
    return -(-size // block)
