"""The Triton form: its three launchers, and every variant in which their kernels ship."""

from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any

import torch

from mlaan_kernels import launching
from mlaan_kernels.conv1x1.forward import forward, forward_kernel
from mlaan_kernels.conv1x1.input_grad import input_grad, input_grad_kernel
from mlaan_kernels.conv1x1.kernels import PRODUCT, Setting
from mlaan_kernels.conv1x1.weight_grad import SETTINGS, weight_grad, weight_grad_kernel
from mlaan_kernels.launching import Variant

__all__ = ["forward", "input_grad", "variants", "weight_grad"]

FLAGS = (False, True)
STRIDES = (1, 2)
NORM_OR_ADD = ((False, False), (True, False), (False, True))
VECTORS = ("mean_ptr", "invstd_ptr", "scale_ptr", "bias_ptr")
SUMS = ("sums_ptr", "squares_ptr", "out_ptr")
CHANNELS = ("in_channels", "out_channels")


def variants() -> list[Variant]:
    """Every kernel x flags x dtype x precision x tile x setting: all that the launchers can choose.

    Of the numbers that a kernel takes, Triton looks at the channels of a group alone when it compiles. Here they are
    multiples of 16, as in networks, and so are all addresses. Others run with the same flags, tile and setting, but
    compile to a form of their own with narrow loads, which is not listed and may spill.
    """
    return [*_forward_variants(), *_input_grad_variants(), *_weight_grad_variants()]


def _forward_variants() -> Iterator[Variant]:
    for norm, statistics, stride in product(FLAGS, FLAGS, STRIDES):
        flags = {"NORM": norm, "STATISTICS": statistics, "STRIDE": stride}
        absent = (() if norm else VECTORS) + (() if statistics else SUMS)
        yield from _settled("forward", forward_kernel, flags, ("BLOCK_M", "BLOCK_N"), absent)


def _input_grad_variants() -> Iterator[Variant]:
    for (norm, add), stride in product(NORM_OR_ADD, STRIDES):
        flags = {"NORM": norm, "ADD": add, "STRIDE": stride}
        absent = () if norm else ("c_ptr", *VECTORS, *SUMS)
        yield from _settled("input_grad", input_grad_kernel, flags, ("BLOCK_M", "BLOCK_N"), absent)


def _weight_grad_variants() -> Iterator[Variant]:
    for norm, stride in product(FLAGS, STRIDES):
        flags = {"NORM": norm, "STRIDE": stride}
        yield from _settled("weight_grad", weight_grad_kernel, flags, ("BLOCK_O", "BLOCK_I"), () if norm else VECTORS)


def _settled(
    name: str, kernel: Any, flags: Mapping[str, int], sides: tuple[str, str], absent: tuple[str, ...]
) -> Iterator[Variant]:
    """The kernel with these flags, for every dtype, tile (its two `sides`) and setting."""
    arguments = [argument for argument in kernel.arg_names if not argument.isupper()]
    alone = {argument: None for argument in arguments if argument in absent}
    for dtype in launching.POINTERS:
        signature = {a: _word(a, launching.POINTERS[dtype]) for a in arguments if a not in alone}
        for precision, (tile, (blocks, warps, stages)) in product(_precisions(dtype), _settings(kernel, dtype)):
            sizes = {**dict(zip(sides, tile, strict=True)), **blocks}
            label = " ".join(f"{key}={value:d}".lower() for key, value in flags.items())
            yield Variant(
                f"conv1x1 {name} {str(dtype)[6:]} {precision} {label} {'x'.join(map(str, sizes.values()))}"
                f" warps={warps} stages={stages}",
                kernel,
                signature,
                {**alone, **flags, **sizes, "PRECISION": precision, "INTERPRETED": False},
                num_warps=warps,
                num_stages=stages,
                matrix=dtype != torch.float32 or precision == "tf32",
            )


def _settings(kernel: Any, dtype: torch.dtype) -> list[tuple[tuple[int, int], Setting]]:
    """Tiles of this dtype, once with each of their settings."""
    table = SETTINGS if kernel is weight_grad_kernel else PRODUCT
    return [
        (tile, setting) for (size, tile), settings in table.items() if size == dtype.itemsize for setting in settings
    ]


def _word(argument: str, pointer: str) -> str:
    """Triton's word for the type of an argument that is no constant."""
    if argument in VECTORS + SUMS:
        return "*fp32:16"
    if argument.endswith("_ptr"):
        return f"{pointer}:16"
    return "i32:16" if argument in CHANNELS else "i32"


def _precisions(dtype: torch.dtype) -> tuple[str, ...]:
    """Every one that `launching.dot_precision` may give."""
    return ("tf32", "ieee") if dtype == torch.float32 else ("ieee",)
