"""Timelines of a training step, predicted or measured: what runs when and on which lane, how much memory is alive."""

from dataclasses import dataclass
from typing import Any

from mlaan.plan.schedule import Step


@dataclass(frozen=True)
class Span:
    """One task's time on one lane.

    Attributes:
        name: `step_name` of the plan's step.
        kind: a task kind's word: Forward, Rebuild, Head, Propagate, Backward, Update, Norm.
        module: the local module it is for; of joined tasks, the first one's.
        lane: what it runs on: a stream of the GPU, or 0 for the CPU.
        start, end: seconds from the step's start.
    """

    name: str
    kind: str
    module: int
    lane: int
    start: float
    end: float

    @property
    def seconds(self) -> float:
        """How long it takes."""
        return self.end - self.start


@dataclass(frozen=True)
class Timeline:
    """A step in time.

    Attributes:
        spans: in any order; a task that works on several lanes has a span on each.
        memory: (seconds from the step's start, bytes alive from then on), rising in time.
    """

    spans: tuple[Span, ...]
    memory: tuple[tuple[float, int], ...]

    @property
    def seconds(self) -> float:
        """From the step's start to the end of its last task."""
        return max((span.end for span in self.spans), default=0.0)

    @property
    def lanes(self) -> tuple[int, ...]:
        """The lanes that tasks run on, rising."""
        return tuple(sorted({span.lane for span in self.spans}))

    @property
    def busy(self) -> dict[int, float]:
        """For each lane the seconds in which it works."""
        return {lane: sum(end - start for start, end in self._work(lane)) for lane in self.lanes}

    @property
    def overlap(self) -> float:
        """Share of the time in which at least one lane works during which two or more do, 0 to 1."""
        work = [turn for lane in self.lanes for turn in self._work(lane)]
        turns = sorted([(start, 1) for start, _ in work] + [(end, -1) for _, end in work])
        working, since, some, several = 0, 0.0, 0.0, 0.0
        for time, change in turns:
            some += (time - since) * (working >= 1)
            several += (time - since) * (working >= 2)
            working, since = working + change, time
        return several / some if some else 0.0

    @property
    def peak(self) -> tuple[float, int]:
        """When the most memory is alive for the first time, and how many bytes; (0, 0) where memory is not known."""
        return max(self.memory, key=lambda point: point[1], default=(0.0, 0))

    def _work(self, lane: int) -> list[tuple[float, float]]:
        """When a lane works: its spans, those that meet or overlap as one."""
        merged: list[tuple[float, float]] = []
        for start, end in sorted((span.start, span.end) for span in self.spans if span.lane == lane):
            if merged and start <= merged[-1][1]:
                merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
            else:
                merged.append((start, end))
        return merged


def step_name(step: Step) -> str:
    """A plan's step in words, such as "Propagate(1, 2) + Backward(1)": the same in every timeline."""
    return " + ".join(map(str, step.tasks))


def chrome_trace(timeline: Timeline, process: str = "step") -> dict[str, Any]:
    """The timeline in the Chrome trace format, to be written as JSON for ui.perfetto.dev or chrome://tracing.

    One thread for each lane, and a counter for the memory; times are microseconds from the step's start, memory is in
    bytes. Source: the Trace Event Format, "Complete Events", "Counter Events" and "Metadata Events".

    Args:
        process: what the step is called.
    """
    events: list[dict[str, Any]] = [{"ph": "M", "pid": 0, "name": "process_name", "args": {"name": process}}]
    for lane in timeline.lanes:
        events.append({"ph": "M", "pid": 0, "tid": lane, "name": "thread_name", "args": {"name": f"lane {lane}"}})
    for span in sorted(timeline.spans, key=lambda span: (span.start, span.lane)):
        times = {"ts": span.start * 1e6, "dur": span.seconds * 1e6}
        about = {"kind": span.kind, "module": span.module}
        what = {"ph": "X", "pid": 0, "tid": span.lane, "name": span.name, "cat": span.kind}
        events.append({**what, **times, "args": about})
    for time, size in timeline.memory:
        events.append({"ph": "C", "pid": 0, "name": "memory", "ts": time * 1e6, "args": {"bytes": size}})
    return {"traceEvents": events, "displayTimeUnit": "ms"}
