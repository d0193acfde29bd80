"""How a training step is measured: time in interleaved rounds, peak memory by allocator events, FLOPs by dispatch."""

import gc
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

Batch = tuple[Tensor, Tensor]
Step = Callable[[Tensor, Tensor], object]


class Spread(NamedTuple):
    """Three figures of a sample, rising: its 20th, 50th and 80th percentile, or its least, median and greatest."""

    low: float
    median: float
    high: float


class MemoryEvent(NamedTuple):
    """One allocation (change > 0) or release (change < 0) of `change` bytes at `time` nanoseconds."""

    time: int
    change: int


def percentiles(sample: Sequence[float]) -> Spread:
    """p20, p50 and p80, linear between the sorted values. Raises ValueError for an empty sample."""
    if not sample:
        raise ValueError("no rounds were measured")
    tenths = statistics.quantiles([*sample] * (2 if len(sample) == 1 else 1), n=10, method="inclusive")
    return Spread(tenths[1], tenths[4], tenths[7])


def paired_ratios(times: Sequence[float], reference: Sequence[float]) -> Spread:
    """Least, median and greatest of times[i] / reference[i]: pairs of one round share what else the machine did.

    Raises ValueError for samples of different lengths, or empty ones.
    """
    ratios = [ours / theirs for ours, theirs in zip(times, reference, strict=True)]
    if not ratios:
        raise ValueError("no rounds were measured")
    return Spread(min(ratios), statistics.median(ratios), max(ratios))


def interleaved(
    steps: Mapping[str, Step], batches: Sequence[Batch], rounds: int, warmup: int
) -> dict[str, list[float]]:
    """Seconds of one step of each contender in each round of `in_rounds`."""
    found = list(in_rounds(steps, batches, rounds, warmup))
    return {name: [seconds[name] for seconds in found] for name in steps}


def in_rounds(
    steps: Mapping[str, Step],
    batches: Sequence[Batch],
    rounds: int,
    warmup: int,
    repeats: int = 1,
    between: Callable[[], object] = lambda: None,
) -> Iterator[dict[str, float]]:
    """Seconds of a step of each contender, round by round, as soon as the round is over.

    In a round every contender takes its turn on the same batch; the batch changes with the round, and the order
    rotates, so that none always follows the same neighbour's leftovers in the caches.

    Args:
        warmup: rounds before those that are given.
        repeats: steps of a turn; their mean is given.
        between: called before every turn; what it raises ends the measurement.
    """
    names = list(steps)
    for turn in range(warmup + rounds):
        images, labels = batches[turn % len(batches)]
        shift = turn % len(names)
        seconds: dict[str, float] = {}
        for name in names[shift:] + names[:shift]:
            between()
            _wait(images.device)
            start = time.perf_counter()
            for _ in range(repeats):
                steps[name](images, labels)
            _wait(images.device)
            seconds[name] = (time.perf_counter() - start) / repeats
        if turn >= warmup:
            yield seconds


def highest_level(events: Iterable[MemoryEvent]) -> int:
    """Most bytes above the level of the start, walking events by time; equal times keep their order. Never below 0."""
    level = peak = 0
    for event in sorted(events, key=lambda event: event.time):
        level += event.change
        peak = max(peak, level)
    return peak


def peak_memory(run: Callable[[], object], device: torch.device) -> int:
    """Peak bytes that torch's allocator hands out during `run`, above what was allocated before it.

    Not the process's size: neither what the allocator keeps in reserve nor torch's own libraries count. `run` should
    let go of nothing that was there before, because the CPU's profiler does not see that.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        run()
    assert profiler.profiler is not None
    results = profiler.profiler.kineto_results
    assert results is not None
    events: list[Any] = [event for event in results.events() if event.name() == "[memory]"]
    return highest_level(MemoryEvent(event.start_ns(), event.nbytes()) for event in events)


def flops(run: Callable[[], object]) -> int:
    """Floating-point operations of the convolutions and matrix products in `run`; multiply and add are two."""
    with _FlopCounter() as counter:
        run()
    return counter.total


class _FlopCounter(TorchDispatchMode):
    """Adds up torch.utils.flop_counter's formulas.

    Its own FlopCounterMode also keeps account per module, through hooks that cannot run in a step made of
    torch.autograd.grad calls.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        self.total += formula(*args, **(kwargs or {}), out_val=out) if formula else 0
        return out


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
