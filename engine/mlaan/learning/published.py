"""The papers' own cuts and MLAAN's leap tables, kept as data because no rule gives them all.

Blocks are written stage.index, stages from 1 and indices from 0. A module is known by its last block.
"""

_RESNET110_K32 = (
    [f"1.{b}" for b in (1, 2, 4, 5, 7, 9, 11, 13, 14, 16, 17)]
    + [f"2.{b}" for b in (1, 2, 4, 5, 7, 9, 11, 13, 14, 16, 17)]
    + [f"3.{b}" for b in (1, 3, 4, 6, 7, 9, 11, 13, 15, 17)]
)

# (backbone, modules) -> last block of every module. Where every block is a module the papers count the stem as one
# more: their K = 16, 34, 51 and 55 are 15, 33, 50 and 54 modules here.
# Up to 8 modules, and 16 of ResNet-110, they are InfoPro's, which later papers keep; ResNet-101's 4 are MAN's.
PUBLISHED_ENDS: dict[tuple[str, int], str] = {
    ("resnet32", 2): "2.1 3.4",
    ("resnet32", 4): "1.2 2.1 3.0 3.4",
    ("resnet32", 8): "1.0 1.2 1.4 2.1 2.3 3.0 3.2 3.4",
    ("resnet32", 15): "every block",
    ("resnet110", 2): "2.8 3.17",
    ("resnet110", 4): "1.11 2.7 3.3 3.17",
    ("resnet110", 8): "1.4 1.11 2.0 2.7 2.14 3.3 3.10 3.17",
    ("resnet110", 16): "1.1 1.4 1.7 1.10 1.13 1.16 2.1 2.4 2.7 2.11 2.15 3.1 3.5 3.9 3.13 3.17",
    ("resnet110", 32): " ".join(_RESNET110_K32),
    ("resnet110", 54): "every block",
    ("resnet34", 16): "every block",
    ("resnet101", 4): "3.0 3.9 3.17 4.2",
    ("resnet101", 33): "every block",
    ("resnet152", 50): "every block",
}

_RESNET110_LEAPS = {
    "1": "2.0 3.0 3.2 3.17",
    "2": "3.0 3.2 3.3 3.17",
    "2.17": "3.0 3.3 3.4 3.17",
    **{f"3.{b}": "3.8 3.17" for b in range(7)},
    **{f"3.{b}": "3.14 3.17" for b in range(7, 11)},
    **{f"3.{b}": "3.15 3.17" for b in (11, 12)},
    **{f"3.{b}": "3.16 3.17" for b in (13, 14, 15)},
    "3.16": "3.17",
}
_BOTTLENECK_LEAPS = {"1": "2.0 3.0 4.0 4.2", "2": "3.0 4.0 4.1", "3": "4.0 4.1", "4": "4.1 4.2"}

# (backbone, modules) -> {last block, or else its stage: sources of the leap network's blocks}
PUBLISHED_LEAPS: dict[tuple[str, int], dict[str, str]] = {
    ("resnet32", 8): {
        "1": "2.0 3.0 3.2 3.4",
        "1.4": "2.0 3.0 3.3 3.4",
        "2": "3.0 3.2 3.3 3.4",
        "3.0": "3.2 3.3 3.4",
        "3.2": "3.3 3.4",
    },
    ("resnet32", 15): {
        "1": "2.0 3.0 3.2 3.4",
        "1.2": "2.0 3.0 3.3 3.4",
        "1.4": "2.0 3.0 3.3 3.4",
        "2": "3.0 3.2 3.3 3.4",
        "3.0": "3.1 3.2 3.4",
        "3.1": "3.2 3.3 3.4",
        "3.2": "3.3 3.4",
        "3.3": "3.4",
    },
    ("resnet110", 32): {**_RESNET110_LEAPS, "3.15": "3.17"},
    ("resnet110", 54): _RESNET110_LEAPS,
    ("resnet34", 16): {
        "1": "2.0 2.1 3.0 4.0 4.2",
        "2": "2.1 3.0 4.0 4.2",
        "3": "3.1 4.0 4.1",
        "4.0": "4.1 4.1 4.2",
        "4.1": "4.1 4.2",
    },
    ("resnet101", 33): _BOTTLENECK_LEAPS,
    ("resnet152", 50): _BOTTLENECK_LEAPS,
}
