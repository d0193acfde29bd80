"""What a profiler recorded of training steps, as plain records, and the timelines that come of them.

Nothing here asks for a GPU or a profiler, so that a GPU's records can be looked into without one.
"""

import bisect
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

from torch._C._autograd import DeviceType

from mlaan.plan import Step
from mlaan.plan.timeline import Span, Timeline, step_name

STEP = "training step"
"""The name of the range around a whole step."""

_MEMORY = "[memory]"
_LAUNCH = re.compile(r"cu(da)?[A-Z]")
"""Names of the CUDA runtime's and driver's calls, such as cudaLaunchKernel and cuLaunchKernelEx."""


class Event(NamedTuple):
    """One record of the profiler.

    Attributes:
        name: of a range, an operator, a call of the CUDA runtime, a kernel, or "[memory]".
        start, end: nanoseconds on one clock for host and device.
        device: whether it happened on the GPU; a "[memory]" event: whether it is the GPU's memory.
        stream: of what happened on the GPU.
        id: the number that a kernel shares with the runtime call that launched it, or an operator's own.
        operator: of a kernel, the `id` of the operator that launched it; 0 where none did.
        change: "[memory]": bytes allocated (> 0) or released (< 0).
    """

    name: str
    start: int
    end: int
    device: bool = False
    stream: int = 0
    id: int = 0
    operator: int = 0
    change: int = 0


def plain(event: Any) -> Event:
    """An event of torch.profiler's kineto results as a record."""
    device = event.device_type() == DeviceType.CUDA
    numbers = event.device_resource_id(), event.correlation_id(), event.linked_correlation_id(), event.nbytes()
    return Event(event.name(), event.start_ns(), event.end_ns(), device, *numbers)


def timelines(
    events: Sequence[Event], planned: Mapping[str, Step], base: int, *, on_gpu: bool
) -> list[tuple[Timeline, float]]:
    """Each recorded step as a timeline, and its length in seconds.

    Args:
        planned: the plan's steps by the names of their ranges.
        base: bytes allocated before each step.
        on_gpu: lanes are the GPU's streams, numbered from 0 in the order of their numbers, and only its memory
            counts. An allocation is the host's business and long before the kernels that it is for: it is put where
            the GPU was when it came to what the host launched last before it.
    """
    hosts = sorted((event for event in events if not event.device), key=lambda event: event.start)
    kernels = _launched(events, {*planned, STEP}) if on_gpu else []
    streams = {stream: lane for lane, stream in enumerate(sorted({kernel.stream for _, kernel in kernels}))}
    found = []
    for whole in (event for event in hosts if event.name == STEP):
        inside = range(whole.start, whole.end)
        tasks = [event for event in hosts if event.name in planned and event.start in inside]
        mine = [(at, kernel) for at, kernel in kernels if at in inside]
        rows = _on_streams(tasks, mine, streams) if on_gpu else [(task, 0, task.start, task.end) for task in tasks]
        spans = [_span(planned[task.name], lane, a - whole.start, b - whole.start) for task, lane, a, b in rows]
        changes = [e for e in events if e.name == _MEMORY and e.device == on_gpu and e.start in inside]
        memory = _levels(changes, base, _gpu_clock(mine), whole.start)
        found.append((Timeline(tuple(spans), memory), (whole.end - whole.start) / 1e9))
    return found


def _launched(events: Sequence[Event], ranges: set[str]) -> list[tuple[int, Event]]:
    """What ran on the GPU, with the host's time when it was launched, rising."""
    calls = {e.id: e.start for e in events if not e.device and _LAUNCH.match(e.name)}
    operators = {e.id: e.start for e in events if not e.device and e.id and not _LAUNCH.match(e.name)}
    kernels = [e for e in events if e.device and e.name != _MEMORY and e.name not in ranges]
    # a kernel that Triton launches belongs to no operator, and not every launch is a call that is recorded
    launched = [(calls.get(kernel.id, operators.get(kernel.operator)), kernel) for kernel in kernels]
    return sorted((at, kernel) for at, kernel in launched if at is not None)


def _on_streams(
    tasks: Sequence[Event], kernels: Sequence[tuple[int, Event]], streams: Mapping[int, int]
) -> list[tuple[Event, int, int, int]]:
    """For each task and each lane on which it has kernels: the first one's start and the last one's end.

    The host's threads all wait for one another within a task's range (autograd's too), so time tells whose a launch is.
    """
    found: dict[tuple[int, int], tuple[int, int]] = {}
    starts = [task.start for task in tasks]
    for at, kernel in kernels:
        place = bisect.bisect_right(starts, at) - 1
        if place >= 0 and at < tasks[place].end:
            key = place, streams[kernel.stream]
            first, last = found.get(key, (kernel.start, kernel.end))
            found[key] = min(first, kernel.start), max(last, kernel.end)
    return [(tasks[place], lane, first, last) for (place, lane), (first, last) in found.items()]


def _span(step: Step, lane: int, start: int, end: int) -> Span:
    return Span(step_name(step), step.task.kind.value, step.task.module, lane, start / 1e9, end / 1e9)


def _gpu_clock(kernels: Sequence[tuple[int, Event]]) -> Callable[[int], int]:
    """From the host's time to the latest start among the kernels launched until then; itself where there is none."""
    launches = [at for at, _ in kernels]
    reached = list(accumulate((kernel.start for _, kernel in kernels), max))

    def clock(at: int) -> int:
        place = bisect.bisect_right(launches, at)
        return reached[place - 1] if place else min([at, *reached[:1]])

    return clock


def _levels(
    changes: Sequence[Event], base: int, clock: Callable[[int], int], begin: int
) -> tuple[tuple[float, int], ...]:
    levels, level = [(0.0, base)], base
    for event in sorted(changes, key=lambda event: event.start):
        level += event.change
        levels.append(((clock(event.start) - begin) / 1e9, level))
    return tuple(levels)
