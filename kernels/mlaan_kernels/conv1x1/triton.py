"""The Triton form: its three launchers, and every variant in which their kernels ship."""

from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any

import torch

from mlaan_kernels import launching
from mlaan_kernels.conv1x1.forward import forward, forward_kernel
from mlaan_kernels.conv1x1.input_grad import WIDEST_NORM, input_grad, input_grad_kernel
from mlaan_kernels.conv1x1.kernels import PRODUCT, Setting
from mlaan_kernels.conv1x1.tiles import TILES
from mlaan_kernels.conv1x1.weight_grad import SETTINGS, weight_grad, weight_grad_kernel
from mlaan_kernels.launching import Variant

__all__ = ["forward", "input_grad", "variants", "weight_grad"]

FLAGS = (False, True)
STRIDES = (1, 2)
CHANNELS = (64, 128)
NORM_OR_ADD = ((False, False), (True, False), (False, True))
VECTORS = ("mean_ptr", "invstd_ptr", "scale_ptr", "bias_ptr")
SUMS = ("sums_ptr", "squares_ptr", "out_ptr")
MULTIPLES = ("rows", "run", "in_channels", "out_channels")
"""Numbers that are multiples of 16 in networks."""


def variants() -> list[Variant]:
    """Every kernel x config x dtype x flags; one group, slice and cotangent, and channels that are multiples of 16."""
    return [*_forward_variants(), *_input_grad_variants(), *_weight_grad_variants()]


def _forward_variants() -> Iterator[Variant]:
    for norm, statistics, stride, tile in product(FLAGS, FLAGS, STRIDES, TILES):
        flags = {
            "NORM": norm,
            "STATISTICS": statistics,
            "STRIDE": stride,
            "BLOCK_M": tile.rows,
            "BLOCK_N": tile.columns,
        }
        absent = (() if norm else VECTORS) + (() if statistics else SUMS)
        yield from _settled("forward", forward_kernel, flags, absent)


def _input_grad_variants() -> Iterator[Variant]:
    for (norm, add), stride, tile in product(NORM_OR_ADD, STRIDES, TILES):
        if norm and tile.columns > WIDEST_NORM:
            continue
        flags = {"NORM": norm, "ADD": add, "STRIDE": stride, "BLOCK_M": tile.rows, "BLOCK_N": tile.columns}
        absent = () if norm else ("c_ptr", *VECTORS, *SUMS)
        yield from _settled("input_grad", input_grad_kernel, flags, absent)


def _weight_grad_variants() -> Iterator[Variant]:
    for norm, stride, out_channels, in_channels in product(FLAGS, STRIDES, CHANNELS, CHANNELS):
        flags = {"NORM": norm, "STRIDE": stride, "BLOCK_O": out_channels, "BLOCK_I": in_channels}
        yield from _settled("weight_grad", weight_grad_kernel, flags, () if norm else VECTORS)


def _settled(name: str, kernel: Any, flags: Mapping[str, int], absent: tuple[str, ...]) -> Iterator[Variant]:
    """The kernel with these flags, for every dtype and setting."""
    arguments = [argument for argument in kernel.arg_names if not argument.isupper()]
    alone = {argument: None for argument in arguments if argument in absent}
    alone |= {
        argument: 1 for argument in arguments if argument in ("groups", "slices", "cotangents")
    }  # 1 is compiled in
    for dtype in launching.POINTERS:
        signature = {a: _word(a, launching.POINTERS[dtype]) for a in arguments if a not in alone}
        for precision, (blocks, warps, stages) in product(_precisions(dtype), _settings(dtype, flags)):
            constants = {**alone, **flags, **blocks, "PRECISION": precision, "INTERPRETED": False}
            label = " ".join(f"{key}={value:d}".lower() for key, value in {**flags, **blocks}.items())
            yield Variant(
                f"conv1x1 {name} {str(dtype)[6:]} {precision} {label} warps={warps} stages={stages}",
                kernel,
                signature,
                constants,
                num_warps=warps,
                num_stages=stages,
                matrix=dtype != torch.float32 or precision == "tf32",
            )


def _settings(dtype: torch.dtype, flags: Mapping[str, int]) -> list[Setting]:
    """None where no call is cut like that."""
    if "BLOCK_N" in flags:
        return PRODUCT.get((dtype.itemsize, flags["BLOCK_N"]), [])
    return SETTINGS[dtype.itemsize] if dtype.itemsize == 2 or max(flags["BLOCK_O"], flags["BLOCK_I"]) == 64 else []


def _word(argument: str, pointer: str) -> str:
    """Triton's word for the type of an argument that is no constant."""
    if argument in VECTORS + SUMS:
        return "*fp32:16"
    if argument.endswith("_ptr"):
        return f"{pointer}:16"
    return "i32:16" if argument in MULTIPLES else "i32"


def _precisions(dtype: torch.dtype) -> tuple[str, ...]:
    """Every one that `launching.dot_precision` may give."""
    return ("tf32", "ieee") if dtype == torch.float32 else ("ieee",)
