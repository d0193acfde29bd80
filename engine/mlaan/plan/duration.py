"""How long the tasks of a plan will take on a machine, one after the other."""

from functools import lru_cache
from typing import NamedTuple

from mlaan.models.cost import Pass
from mlaan.plan.costs import PlanCosts
from mlaan.plan.graph import Kind, Task
from mlaan.plan.lanes import TaskTime
from mlaan.plan.machine import Machine
from mlaan.plan.schedule import Step, StepPlan

_PASSES = (Kind.FORWARD, Kind.REBUILD, Kind.HEAD, Kind.PROPAGATE, Kind.BACKWARD)


class _Taken(NamedTuple):
    """Seconds in all, and those in which the machine is full."""

    seconds: float
    full: float


def task_time(plan: StepPlan, costs: PlanCosts, step: Step, machine: Machine, precision: str | None = None) -> TaskTime:
    """Of one step of the plan: its task and those that run in the same call.

    Each operator takes the longest of its FLOPs at the machine's rate, its bytes at the machine's bandwidth, and a
    launch. Where fused kernels run a block, what lies between two matrix products is one operator that moves as much as
    the largest of it. An Update reads gradients, weights and state and writes the last two.

    Args:
        precision: "float32", "tf32", "bfloat16" or "float16"; None: the activations' dtype.
    """
    chosen = precision or str(costs.dtype).removeprefix("torch.")
    taken = [_task(plan, costs, task, machine, chosen) for task in step.tasks]
    seconds, full = sum(one.seconds for one in taken), sum(one.full for one in taken)
    return TaskTime(seconds, full / seconds if seconds else 0.0)


def step_seconds(plan: StepPlan, costs: PlanCosts, machine: Machine, precision: str | None = None) -> float:
    """Of a whole training step on one stream."""
    return sum(task_time(plan, costs, step, machine, precision).seconds for step in plan.steps)


def _task(plan: StepPlan, costs: PlanCosts, task: Task, machine: Machine, precision: str) -> _Taken:
    if task.kind is Kind.UPDATE:
        return _move(costs.update_bytes[task.module], machine)
    if task.kind in _PASSES:
        return _pass(costs.run(plan, task), machine, precision)
    return _move(costs.gradient_bytes, machine)  # the norm of all gradients


def _move(size: int, machine: Machine) -> _Taken:
    full = size / machine.bandwidth
    return _Taken(max(full, machine.launch), full)


@lru_cache(maxsize=2**14)
def _pass(one: Pass, machine: Machine, precision: str) -> _Taken:
    seconds = full = 0.0
    peak = machine.peak(precision)
    for part in one.parts:
        taken = _pass(part, machine, precision)
        seconds, full = seconds + taken.seconds, full + taken.full
    for flops, size in one.operators:
        work = max(flops / peak, size / machine.bandwidth)
        seconds, full = seconds + max(work, machine.launch), full + work
    return _Taken(seconds, full)
