"""Every form of the kernels that may be launched, for compilation without a GPU.

Channels and addresses are multiples of 16, as in networks; elsewhere Triton compiles the same with narrower loads, and
it compiles anew where another number is a multiple of 16, or 1.
"""

from collections.abc import Iterator
from itertools import product
from typing import Any

import torch

from mlaan_kernels.batchnorm_act.backward_kernels import input_grad_kernel, reduce_kernel
from mlaan_kernels.batchnorm_act.blocks import BLOCKS, HALF, NORM, NORM_WARPS, reduce_blocks
from mlaan_kernels.batchnorm_act.forward_kernels import forward_kernel, norm_kernel, statistics_kernel, sum_kernel
from mlaan_kernels.launching import POINTERS, Variant

Form = tuple[str, set[str], dict[str, Any]]
"""Words for the name, pointers that are absent, flags."""

NUMBERS = {"residual_mean_SC", "residual_invstd_SC", "residual_scale_SC", "residual_bias_C"}
RESIDUALS = {"": NUMBERS | {"residual_MC"}, " residual": NUMBERS, " residual-norm": set[str]()}
"""By name: what is absent where a residual is not there, plain, or to be normalised."""


def variants() -> list[Variant]:
    """All of them."""
    return [
        *_maps("statistics", statistics_kernel, [("", set(), {})]),
        *_norms(),
        *_maps("forward", forward_kernel, _forward_forms({})),
        *_maps("sum", sum_kernel, _forward_forms({"MEMBERS": 2})),
        *_maps("reduce", reduce_kernel, _reduce_forms()),
        *_maps("input_grad", input_grad_kernel, _input_grad_forms()),
    ]


def _forward_forms(flags: dict[str, Any]) -> list[Form]:
    found: list[Form] = []
    outputs = {"": (True, False), " pool": (False, True), " write+pool": (True, True)}
    for (residual, absent), (output, (write, pool)) in product(RESIDUALS.items(), outputs.items()):
        outside = (set() if write else {"y_MC"}) | (set() if pool else {"pooled_IC"})
        found.append((output + residual, absent | outside, {**flags, "WRITE": write, "POOL": pool}))
    return found


def _reduce_forms() -> list[Form]:
    found: list[Form] = []
    for members, (residual, absent), groups, pooled, write in product(
        (1, 2), RESIDUALS.items(), (1, 2), (False, True), (True, False)
    ):
        if not write and (pooled or residual or members > 1):
            continue  # `input_grad` could not mask
        outside = (set() if pooled else {"pooled0_IC", "pooled1_IC"}) | (set() if write else {"dz_GMC"})
        words = f" {groups}" + (" any" if pooled else " dense") + " write" * write + residual + " sum" * (members == 2)
        found.append((words, absent | outside, {"GROUPS": groups, "MEMBERS": members}))
    return found


def _input_grad_forms() -> list[Form]:
    found: list[Form] = []
    for groups, batch in product((1, 2), (True, False)):
        words = f" {groups}" + (" batch" if batch else " running")
        found.append((words, set() if batch else {"sums_GSKC"}, {"GROUPS": groups}))
    return found


def _maps(name: str, kernel: Any, forms: list[Form]) -> Iterator[Variant]:
    for dtype, (words, absent, flags) in product(POINTERS, forms):
        absent = absent & set(kernel.arg_names)
        if kernel is reduce_kernel:
            blocks = reduce_blocks(flags["GROUPS"], flags["MEMBERS"])
        else:
            blocks = HALF if kernel is sum_kernel else BLOCKS
        constants = {**flags, **blocks._asdict(), **dict.fromkeys(absent)}
        signature = {a: _kind(a, dtype) for a in kernel.arg_names if a not in constants}
        title = f"batchnorm_act {name} {POINTERS[dtype].strip('*')} {blocks.BLOCK_M}x{blocks.BLOCK_C}{words}"
        yield Variant(title, kernel, signature, constants)


def _kind(argument: str, dtype: torch.dtype) -> str:
    if argument.endswith("MC"):
        return POINTERS[dtype] + ":16"
    if argument.endswith("C") and argument != "C":
        return "*fp32:16"
    return {"C": "i32:16", "width": "i32:16", "floor": "fp32"}.get(argument, "i32")


def _norms() -> Iterator[Variant]:
    """Running statistics are of any dtype, or there are none."""
    for running in (None, *POINTERS):
        constants: dict[str, Any] = {"RUNNING": running is not None, **NORM}
        if running is None:
            constants |= dict.fromkeys(("running_mean_C", "running_var_C"))
        signature = {a: _kind(a, torch.float32) for a in norm_kernel.arg_names if a not in constants}
        signature |= {"eps": "fp32", "momentum": "fp32"}
        if running is not None:
            signature |= dict.fromkeys(("running_mean_C", "running_var_C"), POINTERS[running] + ":16")
        name = "none" if running is None else POINTERS[running].strip("*")
        yield Variant(f"batchnorm_act norm running {name}", norm_kernel, signature, constants, num_warps=NORM_WARPS)
