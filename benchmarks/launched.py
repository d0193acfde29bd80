"""Which launches of the operators, at small shapes, are none of the variants that they list.

    python -m benchmarks.launched

Needs a process without Triton's interpreter, and no GPU: what would be launched is looked at and left.
"""

import importlib
import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from benchmarks.micro.cases import SMALL
from benchmarks.micro.harness import Draw
from mlaan_kernels import choice, launching
from mlaan_kernels.launching import POINTERS, Variant

OTHERS = {torch.int64: "*i64", torch.int32: "*i32", torch.uint8: "*u8"}
STAGES, WARPS = 3, 4
"""Triton's own, where a launch does not say."""


def forms(kernel: Any, arguments: tuple[Any, ...], constants: Mapping[str, Any]) -> list[tuple[Any, dict[str, Any]]]:
    """The function under triton.jit with its arguments, num_warps and num_stages by name, once for each setting."""
    configs = getattr(kernel, "configs", None)
    function = kernel if configs is None else kernel.fn
    given = dict(zip(function.arg_names, arguments, strict=False)) | dict(constants)
    default = {"num_warps": WARPS, "num_stages": STAGES}
    if configs is None:
        return [(function, default | given)]
    return [(function, given | c.kwargs | {"num_warps": c.num_warps, "num_stages": c.num_stages}) for c in configs]


def differences(variant: Variant, given: Mapping[str, Any]) -> list[str]:
    """Where the launch is not this variant; which of its numbers are multiples of 16 does not count."""
    own = {"num_warps": variant.num_warps, "num_stages": variant.num_stages}
    found = [f"{name} is {given[name]}, listed {value}" for name, value in own.items() if given[name] != value]
    for name in variant.kernel.arg_names:
        if not _is(variant, name, given[name]):
            value = given[name].dtype if isinstance(given[name], Tensor) else given[name]
            listed = variant.signature[name] if name in variant.signature else variant.constants[name]
            found.append(f"{name} is {value}, listed {listed}")
    return found


def _is(variant: Variant, name: str, value: Any) -> bool:
    kind = variant.signature.get(name, "").partition(":")[0]
    if not kind:
        return variant.constants[name] == value
    if isinstance(value, Tensor):
        return kind == (POINTERS | OTHERS)[value.dtype]
    return value is not None and kind == ("fp32" if isinstance(value, float) else "i32")


def main() -> int:
    """Returns the exit code: 1 if a launch is not listed."""
    launches: list[tuple[str, Any, dict[str, Any]]] = []
    operator = ""

    def watch(kernel: Any, grid: Any, *arguments: Any, **constants: Any) -> None:
        launches.extend((operator, *form) for form in forms(kernel, arguments, constants))

    launching.launch = watch
    choice.triton_obstacle = lambda device, dtype: None
    with choice.using("triton"):
        for case in SMALL:
            operator = case.operator
            work = case.work("fused", case.inputs(Draw(torch.device("cpu"), 0)))
            work.backward(work.forward())
    listed = {case.operator: importlib.import_module(f"mlaan_kernels.{case.operator}.triton") for case in SMALL}
    variants = {name: module.variants() for name, module in listed.items()}
    missing: dict[str, None] = {}
    for name, function, given in launches:
        found = (differences(variant, given) for variant in variants[name] if variant.kernel is function)
        nearest = min(found, key=len, default=["no variant of this kernel"])
        if nearest:
            missing[f"not listed: {name} {function.__name__}: {'; '.join(nearest)}"] = None
    print(f"{len(launches)} launches of {', '.join(variants)}")
    print("\n".join(missing))
    return int(bool(missing))


if __name__ == "__main__":
    sys.exit(main())
