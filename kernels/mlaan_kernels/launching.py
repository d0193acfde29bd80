"""How Triton kernels are launched, and in which variants they ship."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from mlaan_kernels.choice import interpreting

INTERPRETED = interpreting()
"""Constant for kernels: under the interpreter dot products must not see bfloat16."""

POINTERS = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}
"""Triton's words for pointers to a dtype, as in `Variant.signature`."""


@dataclass(frozen=True)
class Variant:
    """One compiled form of a kernel that may be launched: what the resource table lists and the tests compile.

    Attributes:
        name: operator, kernel and what sets this variant apart, such as "conv1x1 forward bf16 128x64x32".
        kernel: the function under `triton.jit` (of an autotuned kernel, its `fn`).
        signature: type of each argument that is no constant, in Triton's words: "*bf16", "fp32", "i32". ":16" behind it
            says that the address or number is a multiple of 16, which lets loads be wide.
        constants: value of each tl.constexpr argument; None for a pointer that this variant goes without.
        matrix: its time goes into tl.dot: on Hopper it must come out as wgmma.
    """

    name: str
    kernel: Any
    signature: Mapping[str, str]
    constants: Mapping[str, Any] = field(default_factory=dict)
    num_warps: int = 4
    num_stages: int = 3
    matrix: bool = False


def launch(kernel: Any, grid: Sequence[int], *arguments: Any, **constants: Any) -> None:
    """Launch `kernel` on the current stream of its tensors' device; all launches of the package go through here.

    Args:
        grid: number of programs along up to three axes; nothing is launched where one is 0.
        arguments: of the kernel, in order; tensors stand for their addresses.
        constants: tl.constexpr arguments by name, and num_warps, num_stages.
    """
    if not all(grid):
        return
    device = next(a.device for a in arguments if isinstance(a, Tensor))
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        with torch.cuda.device(device):
            kernel[tuple(grid)](*arguments, **constants)
    else:
        kernel[tuple(grid)](*arguments, **constants)


def autotuned(configs: Sequence[triton.Config], key: Sequence[str], restore: Sequence[str] = ()) -> Any:
    """`triton.autotune`, with short trials whose outcome is kept on disk for the next process.

    The interpreter takes one config, the first.

    Args:
        key: arguments whose values are tuned for, beside the dtypes.
        restore: pointers that the kernel reads and writes in place: trials start from the same values, and leave them.
    """
    return triton.autotune(
        configs=list(configs[:1] if INTERPRETED else configs),
        key=list(key),
        restore_value=list(restore) or None,
        do_bench=_short_bench,
        cache_results=not INTERPRETED,
    )


def _short_bench(run: Callable[[], None], quantiles: Sequence[float]) -> Any:
    """Milliseconds at the quantiles, of about 20 ms of trials instead of 100."""
    return triton.testing.do_bench(run, warmup=5, rep=20, quantiles=list(quantiles))


def dot_precision(dtype: torch.dtype, *, linear: bool = False) -> str:
    """`input_precision` of tl.dot: float32 operands go by PyTorch's own switch for convolutions, or linear layers."""
    return "tf32" if dtype == torch.float32 and not INTERPRETED and _allows_tf32(linear) else "ieee"


@triton.jit
def dot(a, b, acc, PRECISION: tl.constexpr, INTERPRETED: tl.constexpr):
    """acc + a @ b with a float32 accumulator."""
    if INTERPRETED:  # whose bfloat16 arithmetic is wrong
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision=PRECISION)


def _allows_tf32(linear: bool) -> bool:
    return bool(torch.backends.cuda.matmul.allow_tf32 if linear else torch.backends.cudnn.allow_tf32)
