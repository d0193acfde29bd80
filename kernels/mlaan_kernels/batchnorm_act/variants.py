"""Every form of the kernels that ships, for compilation without a GPU.

Not every form that may be launched is listed. The widest block comes with all flags in bfloat16, and with the fewest
and the most of them in each dtype; the other blocks come with the fewest flags in each dtype. What else may be launched
has the flags of one listed and the block and dtype of another: a thread has as many numbers of a map in any block.

Channels and addresses are multiples of 16, as in networks; elsewhere Triton compiles the same with narrower loads, and
it compiles anew where another number is a multiple of 16, or 1.
"""

from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any

import torch

from mlaan_kernels.batchnorm_act.backward_kernels import input_grad_kernel, reduce_kernel
from mlaan_kernels.batchnorm_act.blocks import BLOCKS, NORM, NORM_WARPS, Blocks, reduced
from mlaan_kernels.batchnorm_act.forward_kernels import forward_kernel, norm_kernel, statistics_kernel, sum_kernel
from mlaan_kernels.launching import POINTERS, Variant

Form = tuple[str, set[str], dict[str, Any]]
"""Words for the name, pointers that are absent, flags."""

PARTS = {"dense": (True, False), "pooled": (False, True), "both": (True, True)}
"""Parts of a cotangent, by name: dense, pooled."""


def variants() -> list[Variant]:
    """See the module's docstring for which."""
    return [
        *_maps("statistics", statistics_kernel, [("", set(), {})]),
        *_norms(),
        *_maps("forward", forward_kernel, _forward_forms()),
        *_maps("sum", sum_kernel, _sum_forms()),
        *_maps("reduce", reduce_kernel, _reduce_forms()),
        *_maps("input_grad", input_grad_kernel, _input_grad_forms()),
    ]


def _forward_forms() -> list[Form]:
    """From the fewest flags to the most."""
    residuals = {
        "": {"residual_MC", "residual_mean_SC", "residual_scale_SC", "residual_bias_C"},
        " residual": {"residual_mean_SC", "residual_scale_SC", "residual_bias_C"},
        " residual-norm": set[str](),
    }
    outputs = {"": (True, False), " pool": (False, True), " write+pool": (True, True)}
    found: list[Form] = []
    for residual, relu, (output, (write, pool)) in product(residuals, (False, True), outputs.items()):
        absent = residuals[residual] | (set() if write else {"y_MC"}) | (set() if pool else {"pooled_IC"})
        words = " relu" * relu + output + residual
        found.append((words, absent, {"RELU": relu, "WRITE": write, "POOL": pool}))
    return found


def _sum_forms() -> list[Form]:
    """Of a leap block and its twin: two members."""
    found: list[Form] = []
    for words, absent, flags in _forward_forms():
        if flags["RELU"] and (words.endswith("residual") or words.endswith("norm")):
            found.append((words, absent, {"MEMBERS": 2} | {name: flags[name] for name in ("WRITE", "POOL")}))
    return found


def _reduce_forms() -> list[Form]:
    """From the fewest flags to the most."""
    cotangents = [(one,) for one in PARTS] + list(product(PARTS, PARTS))
    norm_of_residual = {
        name for name in reduce_kernel.arg_names if name.startswith("residual_") and name != "residual_MC"
    }
    residuals = {"": norm_of_residual | {"residual_MC"}, " residual": norm_of_residual, " residual-norm": set[str]()}
    found: list[Form] = []
    for members, residual, kinds, relu, write in product((1, 2), residuals, cotangents, (False, True), (False, True)):
        plain = residual == "" and members == 1
        if (not write and not (plain and set(kinds) == {"dense"})) or (residual == " residual" and not relu):
            continue  # dz is not the cotangent itself: it must be written; only a mask needs a plain residual
        if members == 2 and (residual == "" or len(kinds) == 2 or not relu):
            continue  # leap networks: blocks, one cotangent
        absent = residuals[residual] | (set() if write else {"dz_GMC"})
        if residual == " residual-norm" and not relu:
            absent = absent | {"residual_scale_SC", "residual_bias_C"}
        for g, kind in enumerate((kinds * 2)[:2]):
            dense, pooled = PARTS[kind]
            absent = absent | (set() if dense else {f"dense{g}_MC"}) | (set() if pooled else {f"pooled{g}_IC"})
        words = " " + ",".join(kinds) + " relu" * relu + " write" * write + residual + " sum" * (members == 2)
        found.append((words, absent, {"GROUPS": len(kinds), "RELU": relu, "MEMBERS": members}))
    return found


def _input_grad_forms() -> list[Form]:
    """From the fewest flags to the most."""
    found: list[Form] = []
    for groups, relu, batch in product((1, 2), (False, True), (False, True)):
        words = f" {groups}" + " relu" * relu + " batch" * batch
        found.append((words, set() if batch else {"sums_GSKC"}, {"GROUPS": groups, "RELU": relu}))
    return found


def _maps(name: str, kernel: Any, forms: list[Form]) -> Iterator[Variant]:
    for form, (dtype, blocks) in product(forms, product(POINTERS, BLOCKS)):
        widest = blocks == BLOCKS[-1] and (dtype == torch.bfloat16 or form is forms[-1])
        if widest or form is forms[0]:
            groups = form[2]["GROUPS"] if kernel is reduce_kernel else 1
            yield _of(name, kernel, dtype, reduced(blocks, groups), *form)


def _of(
    name: str, kernel: Any, dtype: torch.dtype, blocks: Blocks, words: str, absent: set[str], flags: Mapping[str, Any]
) -> Variant:
    flags = {**flags, **blocks._asdict()}
    signature = {a: _kind(a, dtype) for a in kernel.arg_names if a not in absent and a not in flags}
    title = f"batchnorm_act {name} {POINTERS[dtype].strip('*')} {blocks.BLOCK_M}x{blocks.BLOCK_C}{words}"
    return Variant(title, kernel, signature, {**flags, **dict.fromkeys(absent)})


def _kind(argument: str, dtype: torch.dtype) -> str:
    if argument.endswith("MC"):
        return POINTERS[dtype] + ":16"
    if argument.endswith("C") and argument != "C":
        return "*fp32:16"
    return "i32:16" if argument == "C" else "i32"


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
