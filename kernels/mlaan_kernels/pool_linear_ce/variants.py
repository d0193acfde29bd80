"""The forms of the kernels that may be launched."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from mlaan_kernels.launching import POINTERS, Variant
from mlaan_kernels.pool_linear_ce import forward_kernels, gradient_kernels, tiles
from mlaan_kernels.pool_linear_ce.arguments import LIFT

PRODUCTS = [(torch.float32, "ieee"), (torch.float32, "tf32"), (torch.bfloat16, "ieee"), (torch.float16, "ieee")]
FLOAT, INT, LONG, COUNT = "*fp32:16", "*i32:16", "*i64:16", "i32:16"
SIZES = {"N": "i32", "V": "i32", "C": COUNT, "S": COUNT}
SOFTMAX = {**dict.fromkeys(("logits_LNS", "peaks_LN", "inverses_LN"), FLOAT), "labels_N": LONG, "smoothing": "fp32"}
SOFT = {"": False, "soft ": True}
"""Forms for labels, and for probabilities."""


def variants() -> list[Variant]:
    """Every kernel, dtype and tile, for channels in multiples of 16 and any number of images and classes."""
    return [*_pools(), *_logits(), *_rows(), *_pooled_gradients(), *_weight_gradients()]


def _pools() -> Iterator[Variant]:
    for dtype, block in itertools.product(POINTERS, tiles.POOL_BLOCKS):
        for out in dict.fromkeys((dtype, torch.float32)):
            yield Variant(
                f"pool_linear_ce pool {_word(dtype)} to {_word(out)} {block}",
                forward_kernels.pool,
                {"x_NPC": f"{POINTERS[dtype]}:16", "pooled_NC": f"{POINTERS[out]}:16", "P": "i32", "C": COUNT},
                tiles.pool_tile(block),
            )


def _logits() -> Iterator[Variant]:
    outputs = dict.fromkeys(("logits_LNS", "peaks_LNB", "sums_LNB", "gaps_LNB"), FLOAT)
    for product, block, bias in itertools.product(PRODUCTS, tiles.CLASS_BLOCKS, (FLOAT, None)):
        yield from _configs(
            "logits with bias" if bias else "logits",
            forward_kernels.logits,
            product,
            ("pooled_FNC", "weights_LVC"),
            {"taps_L": INT, **outputs, **({"biases_LV": bias} if bias else {})},
            {"BLOCK_V": block, "HAS_BIAS": True} if bias else {"BLOCK_V": block, "HAS_BIAS": False, "biases_LV": None},
        )


def _rows() -> Iterator[Variant]:
    floats = ("logits_LNS", "peaks_LNB", "sums_LNB", "gaps_LNB", "peaks_LN", "inverses_LN", "losses_LN")
    sides = {"labels_N": LONG, "ranks_LN": INT, "smoothing": "fp32", "N": "i32", "V": "i32", "S": COUNT}
    ends = {*tiles.CLASS_ENDS, *tiles.ROW_BLOCKS}
    for constants in _distinct(tiles.row_constants(classes) for classes in (*sorted(ends), max(ends) + 1)):
        for word, soft in SOFT.items():
            name = f"pool_linear_ce {word}rows {constants['BLOCK_V']} {constants['BLOCK_N']}x{constants['BLOCK_S']}"
            targets = ("targets_NV", "residuals_LNS")
            pointers = dict.fromkeys((*floats, *targets) if soft else floats, FLOAT)
            missing = {} if soft else dict.fromkeys(targets)
            yield Variant(name, forward_kernels.rows, {**pointers, **sides}, {**constants, **missing, "SOFT": soft})
    yield Variant(
        "pool_linear_ce tally",
        forward_kernels.tally,
        {"losses_LN": FLOAT, "losses_L": FLOAT, "ranks_LN": INT, "top1_L": LONG, "top5_L": LONG, "N": "i32"},
        {"BLOCK_N": tiles.BLOCK_TALLY},
    )


def _pooled_gradients() -> Iterator[Variant]:
    others = {**SOFTMAX, "scales_L": FLOAT, "pooled_grads_LNC": FLOAT}
    kernel = gradient_kernels.pooled_gradient
    for product, (word, soft) in itertools.product(PRODUCTS, SOFT.items()):
        for block in tiles.LOOP_BLOCKS[product[0] == torch.float32]:
            constants = {"LIFT": LIFT, "BLOCK_V": block, "SOFT": soft}
            yield from _configs(f"{word}pooled gradient", kernel, product, ("weights_LVC",), others, constants)


def _weight_gradients() -> Iterator[Variant]:
    others = {**SOFTMAX, "taps_L": INT, **dict.fromkeys(("scales_L", "weight_grads_LVC", "bias_grads_LV"), FLOAT)}
    kernel = gradient_kernels.weight_gradient
    for product, block, (word, soft) in itertools.product(PRODUCTS, tiles.CLASS_BLOCKS, SOFT.items()):
        constants = {"LIFT": LIFT, "BLOCK_V": block, "SOFT": soft}
        yield from _configs(f"{word}weight gradient", kernel, product, ("pooled_FNC",), others, constants)


def _configs(
    name: str,
    kernels: Mapping[bool, tiles.Tuned],
    product: tuple[torch.dtype, str],
    operands: Sequence[str],
    others: Mapping[str, str],
    constants: Mapping[str, Any],
) -> Iterator[Variant]:
    """A matrix kernel with all its configs; `operands` point to the features' dtype."""
    dtype, precision = product
    kernel, configs = kernels[dtype == torch.float32]
    words = f"{_word(dtype)} tf32" if precision == "tf32" else _word(dtype)
    every: dict[str, Any] = {**constants, "PRECISION": precision, "INTERPRETED": False}
    for config in configs:
        tile = "x".join(map(str, (constants["BLOCK_V"], *config.kwargs.values())))
        yield Variant(
            f"pool_linear_ce {name} {words} {tile}",
            kernel.fn,
            {**dict.fromkeys(operands, f"{POINTERS[dtype]}:16"), **others, **SIZES},
            every | config.kwargs,
            num_warps=config.num_warps,
            num_stages=config.num_stages,
            matrix=dtype != torch.float32,
        )


def _distinct(sets: Iterator[dict[str, int]]) -> list[dict[str, int]]:
    return list({tuple(constants.values()): constants for constants in sets}.values())


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
