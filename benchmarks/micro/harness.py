"""How an operator is timed: forms, phases, several sets of inputs, and the floor."""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

Tensors = dict[str, Tensor]
PHASES = ("forward", "backward", "both")
TOLERANCE = 2**-5
"""Relative gap in the Euclidean norm above which a result is wrong: wide, for bfloat16 sums in another order. The
operators' own tests, which come first, are strict."""


class Draw:
    """Random numbers on a device, where large tensors are quick to fill."""

    def __init__(self, device: torch.device, seed: int) -> None:
        self.device, self.generator = device, torch.Generator(device).manual_seed(seed)

    def normal(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Maps come in channels_last."""
        layout = torch.channels_last if len(shape) == 4 else torch.contiguous_format
        tensor = torch.empty(shape, dtype=dtype, device=self.device, memory_format=layout)
        return tensor.normal_(generator=self.generator)

    def integers(self, limit: int, *shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
        """From 0 to limit - 1."""
        return torch.randint(limit, shape, dtype=dtype, device=self.device, generator=self.generator)


class Work(Protocol):
    """One form of an operator on one set of inputs."""

    def forward(self) -> Tensors:
        """Results by name."""
        ...

    def backward(self, results: Tensors) -> Tensors:
        """Gradients by name; may be asked for again and again."""
        ...


class Differentiated:
    """A differentiable function as `Work`: fixed random cotangents for every result with a history, 1 for a loss."""

    def __init__(self, function: Callable[..., Any], inputs: Tensors, wanted: Sequence[str]) -> None:
        self.function, self.wanted = function, wanted
        self.inputs = {name: value.detach().requires_grad_(name in wanted) for name, value in inputs.items()}
        draw = Draw(next(iter(inputs.values())).device, 1)
        self.cotangents = {
            name: draw.normal(*result.shape, dtype=result.dtype) if result.ndim else torch.ones_like(result)
            for name, result in self.forward().items()
            if result.requires_grad
        }

    def forward(self) -> Tensors:
        """See Work."""
        results = self.function(**self.inputs)
        return {f"result {i}": r for i, r in enumerate(results if isinstance(results, tuple) else (results,))}

    def backward(self, results: Tensors) -> Tensors:
        """See Work."""
        if not self.wanted:
            return {}
        roots = [results[name] for name in self.cotangents]
        leaves = [self.inputs[name] for name in self.wanted]
        cotangents = list(self.cotangents.values())
        grads = torch.autograd.grad(roots, leaves, cotangents, retain_graph=True, allow_unused=True)
        named = zip(self.wanted, grads, strict=True)
        return {f"gradient of {name}": grad for name, grad in named if grad is not None}


@dataclass(frozen=True)
class Case:
    """One operator at one shape.

    Attributes:
        shape: in words, for the row's name.
        inputs: makes one set of them.
        reference: what a user of plain PyTorch would write; its results and gradients are right.
        fused: the operator, as a function like `reference` or as a maker of `Work`.
        wanted: inputs to differentiate by; empty: there is no backward.
        bytes, flops: by phase, what the operator must move and compute; a phase that is left out has no row.
        others: more functions to stand beside it, whose results are something else.
        compiled: also time torch.compile of the reference.
    """

    operator: str
    shape: str
    inputs: Callable[[Draw], Tensors]
    reference: Callable[..., Any]
    fused: Callable[..., Any]
    wanted: tuple[str, ...]
    bytes: Mapping[str, int]
    flops: Mapping[str, int] = field(default_factory=dict)
    others: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    fused_is_work: bool = False
    compiled: bool = False

    @property
    def contenders(self) -> tuple[str, ...]:
        """Names of the forms that are timed."""
        return ("fused", "reference", *(("compiled",) if self.compiled else ()), *self.others)

    def work(self, contender: str, inputs: Tensors) -> Work:
        """One form on these inputs."""
        if contender == "fused" and self.fused_is_work:
            return self.fused(inputs)
        forms = {"fused": self.fused, "reference": self.reference, **self.others}
        function = _compiled(self.reference) if contender == "compiled" else forms[contender]
        return Differentiated(function, inputs, self.wanted)

    def gap(self, contender: str, inputs: Tensors) -> float:
        """Largest relative gap to the reference, over the results and gradients that both have, in poisoned memory."""
        with _poisoned():
            found, wanted = (_everything(self.work(name, inputs)) for name in (contender, "reference"))
        return max(_gap(found[name], wanted[name]) for name in found.keys() & wanted.keys())


@contextmanager
def _poisoned() -> Iterator[None]:
    """Fresh memory is full of NaN: what a kernel forgets to write shows."""
    switches: Any = torch.utils.deterministic
    before = switches.fill_uninitialized_memory  # a run on the CPU switches it off for its process
    switches.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)
        switches.fill_uninitialized_memory = before


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    # a kept graph cannot lend its tensors to the backward's results
    import torch._functorch.config

    torch._functorch.config.donated_buffer = False
    return torch.compile(function, dynamic=False)


def _everything(work: Work) -> Tensors:
    results = work.forward()
    return {name: value.detach() for name, value in (results | work.backward(results)).items()}


def _gap(found: Tensor, wanted: Tensor) -> float:
    gap = torch.linalg.vector_norm(found.float() - wanted.float()) / torch.linalg.vector_norm(wanted.float())
    return float(gap) if gap.isfinite() else float("inf")


def runner(works: Sequence[Work], phase: str) -> Callable[[], object]:
    """One call of a phase, on the next set of inputs each time."""
    turn = iter(range(2**62))
    if phase == "backward":
        kept = [work.forward() for work in works]
        return lambda: works[(i := next(turn) % len(works))].backward(kept[i])
    if phase == "forward":
        return lambda: works[next(turn) % len(works)].forward()

    def both() -> None:
        work = works[next(turn) % len(works)]
        work.backward(work.forward())

    return both


class Machine(NamedTuple):
    """What one device was measured to do: bytes per second, read and written, and bfloat16 FLOP per second."""

    bandwidth: float
    rate: float

    @staticmethod
    @cache
    def measured(device: str) -> "Machine":
        """A large copy and a large product on a GPU.

        On a CPU a large in-place sum, because a plain copy there also reads what it overwrites and so flatters, and no
        product.
        """
        source, target = (torch.ones(2**27, device=device) for _ in range(2))
        if device == "cpu":
            return Machine(3 * source.nbytes / median(lambda: target.add_(source), device), float("inf"))
        bandwidth = 2 * source.nbytes / median(lambda: target.copy_(source), device)
        a, b = (torch.randn(8192, 8192, device=device, dtype=torch.bfloat16) for _ in range(2))
        return Machine(bandwidth, 2 * 8192**3 / median(lambda: a @ b, device))

    def floor(self, size: int, flops: int = 0) -> float:
        """Seconds that so many bytes and FLOP take at least."""
        return max(size / self.bandwidth, flops / self.rate)


def median(run: Callable[[], object], device: str) -> float:
    """Seconds of one run, of ten after two to warm up."""
    seconds = []
    for _ in range(12):
        start = clock(device)
        run()
        seconds.append(clock(device) - start)
    return statistics.median(seconds[2:])


def clock(device: str) -> float:
    """Now, with all work that was asked of the device behind it."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()
