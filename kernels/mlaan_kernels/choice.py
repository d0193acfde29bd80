"""Which form of an operator runs: its Triton kernels, or its reference in plain PyTorch.

Environment: TRITON_INTERPRET=1, set before Triton is first imported, lets Triton's interpreter run the kernels on the
CPU: for tests, thousands of times slower.
"""

import importlib.util
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Literal

import torch
from torch import Tensor

Implementation = Literal["auto", "reference", "triton"]

OLDEST = (8, 0)
"""Least compute capability that the kernels are compiled and checked for."""

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_default: ContextVar[Implementation] = ContextVar("implementation", default="auto")
_warned: set[str] = set()


class TritonUnavailableError(RuntimeError):
    """The Triton form of an operator was asked for by name and cannot run; the message says why and what helps."""


@contextmanager
def using(implementation: Implementation) -> Iterator[None]:
    """Inside the block, operators called with "auto" take this form.

    Raises:
        ValueError: `implementation` is none of the three words.
    """
    token = _default.set(_known(implementation))
    try:
        yield
    finally:
        _default.reset(token)


def use_triton(operator: str, implementation: Implementation, tensor: Tensor) -> bool:
    """Decides between the Triton form (True) and the reference (False) for `tensor`'s device and dtype.

    "auto" takes Triton on GPUs that it can serve and the reference elsewhere; where a GPU is there but Triton cannot
    serve it, a RuntimeWarning says so once for each cause.

    Raises:
        TritonUnavailableError: "triton" was asked for and cannot run here.
        ValueError: `implementation` is none of the three words.
    """
    chosen = _known(implementation)
    if chosen == "auto":
        chosen = _default.get()
    if chosen == "reference":
        return False
    obstacle = triton_obstacle(tensor.device, tensor.dtype)
    if obstacle is None:
        return chosen == "triton" or tensor.device.type == "cuda"
    if chosen == "triton":
        raise TritonUnavailableError(f"{operator}'s Triton kernels cannot run on {tensor.device}: {obstacle}")
    if tensor.device.type == "cuda" and tensor.dtype != torch.float64 and obstacle not in _warned:
        _warned.add(obstacle)
        warnings.warn(
            f"operators such as {operator} run their slower PyTorch reference: {obstacle}", RuntimeWarning, stacklevel=3
        )
    return False


def triton_obstacle(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why no Triton kernel can run on `device` with `dtype`, and what helps; None if one can."""
    if dtype not in DTYPES:
        return f"{dtype} has no Triton kernels: use float32, bfloat16 or float16"
    if not _has_triton():
        return "triton is not installed: pip install triton"
    if device.type == "meta":  # shapes alone: nothing runs
        return None
    if device.type == "cpu":
        return None if interpreting() else "they need a CUDA device (TRITON_INTERPRET=1 interprets them, slowly)"
    if device.type != "cuda":
        return f"there are no kernels for {device.type} devices"
    if interpreting():
        return None
    capability = _capability(device)
    if capability < OLDEST:
        return f"its compute capability is {capability[0]}.{capability[1]}, and {OLDEST[0]}.{OLDEST[1]} is needed"
    return None


def interpreting() -> bool:
    """Whether Triton's interpreter runs the kernels."""
    if not _has_triton():
        return False
    from triton import knobs

    return bool(knobs.runtime.interpret)


def _known(implementation: Implementation) -> Implementation:
    if implementation not in ("auto", "reference", "triton"):
        raise ValueError(f"implementation is {implementation!r}: it is 'auto', 'reference' or 'triton'")
    return implementation


@cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


@cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)
