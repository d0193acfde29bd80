"""Lanes: which steps of a plan may run beside each other, and on how many streams that pays."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from mlaan.plan.graph import Kind, Task, TaskGraph
from mlaan.plan.schedule import StepPlan
from mlaan.plan.timeline import Span, Timeline, step_name

MOST = 4
"""Lanes tried at most: a step has no more kinds of work that can overlap."""
WORTH = 0.02
"""Share of a step's time that one more lane must save: each costs events and memory of its own."""


class TaskTime(NamedTuple):
    """What one step of a plan takes: seconds when it runs alone, and the share of the device that it fills then."""

    seconds: float
    share: float


@dataclass(frozen=True)
class LanePlan:
    """Where each step of a plan runs.

    Attributes:
        count: number of lanes; lane 0 is the caller's.
        lane: of each step, in the plan's order. All passes of a module are on one lane.
        waits: for each step the steps of other lanes that it must come after; those that follow from others are
            left out.
        urgent: for each lane whether the step's longest chain of tasks runs on it.
    """

    count: int
    lane: tuple[int, ...]
    waits: tuple[tuple[int, ...], ...]
    urgent: tuple[bool, ...] = (True,)


def step_needs(plan: StepPlan) -> list[set[int]]:
    """For each step of a plan the earlier steps that it must come after, wherever it runs.

    Besides what the graph says: a rebuilt module's passes need their Rebuild, and whoever adds to what another one
    left (a group of cotangents, the gradients of shared weights) comes after it.
    """
    graph = plan.graph
    at = {task: place for place, step in enumerate(plan.steps) for task in step.tasks}
    needs: list[set[int]] = [set() for _ in plan.steps]
    last_of: dict[object, int] = {}
    for place, step in enumerate(plan.steps):
        for task in step.tasks:
            needs[place] |= {at[need] for need in graph.needs.get(task, ())}
            for key in _adds_to(graph, task):
                if key in last_of:
                    needs[place].add(last_of[key])
                last_of[key] = place
        needs[place].discard(place)
    return needs


def _adds_to(graph: TaskGraph, task: Task) -> list[object]:
    """What a task changes that an earlier one may have left."""
    m = task.module
    match task.kind:
        case Kind.HEAD:
            entered = [left for left in graph.groups[m] if task.index in graph.sources.get((m, left), ())]
            return [("weights", graph.weights[task.index]), *(("group", m, left) for left in entered)]
        case Kind.PROPAGATE:
            return [("module", m), ("group", m - 1, task.index - 1)]
        case Kind.BACKWARD:
            onward = graph.groups[m] if graph.merged(m) else ()
            return [("module", m), *(("group", m - 1, left - 1) for left in onward)]
        case Kind.FORWARD | Kind.REBUILD:
            return [("module", m)]
        case _:
            return []


def assign(plan: StepPlan, times: Sequence[TaskTime], count: int, trunks: int | None = None) -> LanePlan:
    """Put the steps on `count` lanes.

    All passes of a module are on one lane, so that what is saved never changes lanes; heads and updates go, in the
    plan's order, where they would start first.

    Args:
        trunks: the modules take turns on so many of the lanes; on all of them if it is not given.
    """
    needs, trunks = step_needs(plan), trunks or count
    free, ends, lanes = [0.0] * count, list[float](), list[int]()
    for place, step in enumerate(plan.steps):
        ready = max((ends[need] for need in needs[place]), default=0.0)
        if step.task.kind in (Kind.FORWARD, Kind.REBUILD, Kind.PROPAGATE, Kind.BACKWARD):
            lane = step.task.module % trunks
        else:
            # of lanes that would start it at the same time the one that has least to do
            lane = min(range(count), key=lambda one: (max(free[one], ready), free[one], one))
        lanes.append(lane)
        ends.append(max(free[lane], ready) + times[place].seconds)
        free[lane] = ends[-1]
    waits = _waits(lanes, needs)
    return LanePlan(count, tuple(lanes), waits, _urgent(count, lanes, needs, times))


def _waits(lanes: Sequence[int], needs: Sequence[set[int]]) -> tuple[tuple[int, ...], ...]:
    """The needs on other lanes that neither the lane's own order nor another wait brings along."""
    # covers[place][lane]: the last step of that lane that is over when the step starts
    covers: list[dict[int, int]] = []
    latest: dict[int, dict[int, int]] = {}
    waits = []
    for place, lane in enumerate(lanes):
        known = dict(latest.get(lane, {}))
        kept = []
        for need in sorted(needs[place], reverse=True):
            if lanes[need] != lane and known.get(lanes[need], -1) < need:
                kept.append(need)
                for other, step in (covers[need] | {lanes[need]: need}).items():
                    known[other] = max(known.get(other, -1), step)
        covers.append(known)
        latest[lane] = known | {lane: place}
        waits.append(tuple(kept))
    return tuple(waits)


def _urgent(count: int, lanes: Sequence[int], needs: Sequence[set[int]], times: Sequence[TaskTime]) -> tuple[bool, ...]:
    """The lanes that hold at least half as much of the longest chain as the one that holds most of it."""
    ends = list[float]()
    before = list[int | None]()
    for place, some in enumerate(needs):
        last = max(some, key=lambda need: ends[need], default=None)
        before.append(last)
        ends.append((0.0 if last is None else ends[last]) + times[place].seconds)
    held = [0.0] * count
    place: int | None = max(range(len(ends)), key=ends.__getitem__, default=None)
    while place is not None:
        held[lanes[place]] += times[place].seconds
        place = before[place]
    return tuple(seconds >= max(held) / 2 for seconds in held)


def simulate(
    plan: StepPlan, lanes: LanePlan, times: Sequence[TaskTime], levels: Sequence[int] | None = None
) -> Timeline:
    """The step as a device would run it: one step per lane at a time, and those that run together share the device.

    Steps that fill the device by shares of more than 1 together are slowed down evenly.

    Args:
        levels: bytes alive while each step runs, if memory is wanted.
    """
    queues = [[place for place, lane in enumerate(lanes.lane) if lane == one] for one in range(lanes.count)]
    left: dict[int, float] = {}
    begun: dict[int, float] = {}
    ended: dict[int, float] = {}
    now = 0.0
    while len(ended) < len(plan.steps):
        for queue in queues:
            if queue and queue[0] not in left and all(need in ended for need in lanes.waits[queue[0]]):
                left[queue[0]], begun[queue[0]] = times[queue[0]].seconds, now
        crowd = max(1.0, sum(times[place].share for place in left))
        now += min(left.values()) * crowd
        shortest = min(left.values())
        for place in list(left):
            left[place] -= shortest
            if left[place] <= 1e-12 * times[place].seconds:
                ended[place] = now
                del left[place]
                queues[lanes.lane[place]].pop(0)
    spans = [_span(plan, place, lanes.lane[place], begun[place], ended[place]) for place in range(len(plan.steps))]
    spans = tuple(sorted(spans, key=lambda span: (span.start, span.lane)))
    memory = sorted((begun[place], level) for place, level in enumerate(levels)) if levels else []
    return Timeline(spans, tuple(memory))


def _span(plan: StepPlan, place: int, lane: int, start: float, end: float) -> Span:
    step = plan.steps[place]
    return Span(step_name(step), step.task.kind.value, step.task.module, lane, start, end)


def choose_lanes(plan: StepPlan, times: Sequence[TaskTime], most: int = MOST) -> LanePlan:
    """As many lanes, and modules beside each other, as pay: one more is taken if it makes the simulated step shorter by
    WORTH."""
    best = assign(plan, times, 1)
    shortest = simulate(plan, best, times).seconds
    for count in range(2, most + 1):
        for trunks in range(1, count + 1):
            tried = assign(plan, times, count, trunks)
            seconds = simulate(plan, tried, times).seconds
            if seconds < shortest * (1 - WORTH):
                best, shortest = tried, seconds
    return best
