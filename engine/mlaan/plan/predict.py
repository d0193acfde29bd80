"""What a step plan will cost: floating-point operations, and memory over time."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from mlaan.models.cost import Pass
from mlaan.plan.costs import PlanCosts, combine, measure_parts
from mlaan.plan.graph import Kind, Task
from mlaan.plan.schedule import Step, StepPlan

__all__ = ["Alive", "PlanCosts", "Prediction", "combine", "levels", "measure_parts", "predict"]


@dataclass(frozen=True)
class Alive:
    """Something that is alive at the peak.

    Attributes:
        kind: "parameters", "twins", "optimizer", "buffers", "images", "saved", "boundary", "cotangent", "gradient", or
            "transient": what the running task takes itself, less what it has let go of by then.
        name: of what.
        bytes: its size.
    """

    kind: str
    name: str
    bytes: int


@dataclass(frozen=True)
class Prediction:
    """Attributes:
    flops: of the whole step.
    peak_bytes: all that is alive at the most, what is there before the step included.
    step_bytes: the part of it that the step makes.
    activation_bytes: images, saved activations, module outputs and cotangents alone, at their most.
    peak_task: the task that runs at the peak.
    alive: what is alive then, largest first.
    """

    flops: int
    peak_bytes: int
    step_bytes: int
    activation_bytes: int
    peak_task: Task
    alive: tuple[Alive, ...]

    def of(self, kind: str) -> int:
        """Bytes of one kind at the peak."""
        return sum(one.bytes for one in self.alive if one.kind == kind)


def predict(plan: StepPlan, costs: PlanCosts) -> Prediction:
    """Walk through the plan and add up what each task computes and what is alive while it runs."""
    course = _Course(plan, costs)
    for step in plan.steps:
        course.run(step)
    again = _Course(plan, costs, course.peak_moment)  # the same walk, to write down what is alive at the peak
    for step in plan.steps:
        again.run(step)
    there = [Alive(kind, "all of the network's", size) for kind, size in costs.static.items()]
    there.append(Alive("images", "this step's", costs.input_bytes))
    made = [Alive(kind, name, size) for (kind, name), size in again.at_peak.items()]
    return Prediction(
        flops=sum(costs.flops(plan, task) for step in plan.steps for task in step.tasks),
        peak_bytes=sum(one.bytes for one in there) + course.peak,
        step_bytes=course.peak,
        activation_bytes=costs.input_bytes + course.activations,
        peak_task=course.peak_task,
        alive=tuple(sorted((one for one in (*there, *made) if one.bytes), key=lambda one: -one.bytes)),
    )


def levels(plan: StepPlan, costs: PlanCosts) -> list[int]:
    """For each step of the plan the most bytes that are alive while it runs, all that is always there included."""
    course = _Course(plan, costs)
    there = sum(costs.static.values()) + costs.input_bytes
    found = []
    for step in plan.steps:
        course.peak = course.level
        course.run(step)
        found.append(there + course.peak)
    return found


@dataclass
class _Arrived:
    """A group's cotangent at a module's output: the storages that hold it, dense ones and pooled ones."""

    dense: str | None = None
    pooled: tuple[str, ...] = ()


class _Course:
    """What is alive during a step, held as the executor holds it.

    A storage is one entry, by kind and name; `holders` counts who has it. An entry goes with its last holder.
    `at_peak` is what is alive at the moment `write_down`, counted from 1.
    """

    def __init__(self, plan: StepPlan, costs: PlanCosts, write_down: int = 0) -> None:
        self.plan, self.costs, self.graph = plan, costs, plan.graph
        self.write_down, self.moment, self.peak_moment = write_down, 0, 0
        self.level = self.gradients = self.peak = self.activations = 0
        self.peak_task = plan.steps[0].task
        self.at_peak: dict[tuple[str, str], int] = {}
        self.alive: dict[tuple[str, str], int] = {}
        self.holders: Counter[tuple[str, str]] = Counter()
        self.heads_left = Counter(head.module for head in costs.heads)
        self.rebuilds_left = Counter(step.task.module for step in plan.steps if step.task.kind is Kind.REBUILD)
        self.arrived: dict[tuple[int, int], _Arrived] = {}
        self.kept_output: dict[int, tuple[str, str]] = {}
        self.task = plan.steps[0].task
        self.owners = {f"head of loss {head.network}": head.home for head in costs.heads}

    def run(self, step: Step) -> None:
        """One step of the plan."""
        self.task = task = step.task
        match task.kind:
            case Kind.FORWARD:
                self._forward(task.module, keep=step.keep)
            case Kind.REBUILD:
                self._rebuild(task.module)
            case Kind.HEAD:
                self._heads(step.tasks)
            case Kind.PROPAGATE | Kind.BACKWARD:
                self._carry(step.tasks, keep=task.module not in step.drops)
            case Kind.UPDATE:
                self._update(task.module)
            case _:
                pass
        for module in step.drops:
            self._let_go("boundary", _output(module - 1))
            if module in self.kept_output:
                self._let_go(*self.kept_output.pop(module))

    def _forward(self, m: int, *, keep: bool) -> None:
        cost = self.costs.modules[m]
        one = cost.kept if keep else cost.forward
        self._reach(one.peak_bytes, cost.saved_bytes * keep + cost.output_bytes)
        readers = (m + 1 < self.graph.modules) + (self.heads_left[m] > 0)
        self._hold("boundary", _output(m), cost.output_bytes, readers + 1)
        if keep:
            self._keep(m, _output(m))
        self._let_go("boundary", _output(m))
        if not self.rebuilds_left[m]:
            self._let_go("boundary", _output(m - 1))

    def _rebuild(self, m: int) -> None:
        cost = self.costs.modules[m]
        self._reach(cost.kept.peak_bytes, cost.saved_bytes + cost.output_bytes)
        again = f"output of module {m}, rebuilt"
        self._hold("boundary", again, cost.output_bytes)
        self._keep(m, again)
        self._let_go("boundary", again)
        self.rebuilds_left[m] -= 1
        if not self.rebuilds_left[m]:
            self._let_go("boundary", _output(m - 1))

    def _keep(self, m: int, output: str) -> None:
        cost = self.costs.modules[m]
        self._hold("saved", f"module {m}", cost.saved_bytes)
        if m:
            self._hold("boundary", _output(m - 1))
        if cost.keeps_output:
            self._hold("boundary", output)
            self.kept_output[m] = ("boundary", output)

    def _heads(self, tasks: Sequence[Task]) -> None:
        calls: dict[int, list[int]] = {}
        for task in tasks:
            calls.setdefault(self.graph.heads[task.index], []).append(task.index)
        if self.costs.fused and len(calls) > 1 and not self.graph.light[tasks[0].index]:
            # leap networks alike run as one: what each holds at its most, and their inputs joined
            every = [self.costs.heads[places[0]] for places in calls.values()]
            joined = sum(self.costs.modules[self.costs.heads[task.index].module].output_bytes for task in tasks)
            self._reach(joined + sum(one.run.peak_bytes for one in every), sum(one.kept_bytes for one in every))
        for network, places in calls.items():
            cost, count = self.costs.heads[places[0]], len(places)
            joined = count * cost.cotangent_bytes if count > 1 else 0
            self._reach(
                joined + cost.run.peak_bytes + (count - 1) * cost.more_peak_bytes,
                count * (cost.kept_bytes + cost.cotangent_bytes),
            )
            self._hold("cotangent", f"loss {places[0]}", count * cost.cotangent_bytes, count)
            self._gradient(f"head of loss {network}", cost.gradient_bytes)
            for place in places:
                self._arrive_from_head(place, f"loss {places[0]}")
        for task in tasks:
            self.heads_left[task.module] -= 1
            if not self.heads_left[task.module]:
                self._let_go("boundary", _output(task.module))

    def _arrive_from_head(self, place: int, name: str) -> None:
        cost = self.costs.heads[place]
        left = next(n for n in self.graph.groups[cost.module] if place in self.graph.sources.get((cost.module, n), ()))
        new = _Arrived(pooled=(name,)) if cost.pooled else _Arrived(dense=name)
        self._arrive(cost.module, left, new)

    def _arrive(self, m: int, left: int, new: _Arrived) -> None:
        before = self.arrived.get((m, left), _Arrived())
        dense = before.dense or new.dense
        if before.dense and new.dense:
            dense = f"sum at module {m} with {left} left, with {new.dense}"
            size = self.costs.modules[m].output_bytes
            self._hold("cotangent", dense, size)
            self._reach(0, 0)
            self._let_go("cotangent", before.dense)
            self._let_go("cotangent", new.dense)
        self.arrived[m, left] = _Arrived(dense, before.pooled + new.pooled)

    def _carry(self, tasks: Sequence[Task], *, keep: bool) -> None:
        m, last = tasks[0].module, tasks[-1].kind is Kind.BACKWARD
        merged = self.graph.merged(m)
        groups = self.graph.groups[m] if last else tuple(task.index for task in tasks)
        onward = [n for n in groups if merged or Task(Kind.PROPAGATE, m, n) in tasks]
        arrived = {n: self.arrived[m, n] for n in groups}
        new = {n: f"through module {m} with {n} left" for n in onward}
        if self.costs.modules[m].fused:
            self._by_hand(m, arrived, new, last=last)
        else:
            self._over_autograd(m, arrived, new, last=last, keep=keep)
        if last or not keep:
            self._let_go("saved", f"module {m}")
        if last:
            self._gradient(f"module {m}", self.costs.modules[m].gradient_bytes)
        for n in onward:
            self._arrive(m - 1, n - 1, _Arrived(dense=new[n]))
        if last:
            for n, cotangent in arrived.items():
                del self.arrived[m, n]
                for name in (cotangent.dense, *cotangent.pooled):
                    if name is not None:
                        self._let_go("cotangent", name)

    def _over_autograd(
        self, m: int, arrived: dict[int, _Arrived], new: dict[int, str], *, last: bool, keep: bool
    ) -> None:
        """Each group that goes on, then the sum of all for the weights; or both at once in a merged module."""
        cost, groups = self.costs.modules[m], list(arrived)
        one_pass = last and len(groups) == 1 and bool(new)
        for n, name in new.items():
            if not one_pass:
                more = keep or last or n != list(new)[-1]
                one = cost.propagate if more else cost.propagated
                self._reach(self._spread(m, [arrived[n]]) + one.peak_bytes, cost.input_bytes)
                self._hold("cotangent", name, cost.input_bytes)
        if last:
            one = cost.both if one_pass else cost.weights
            self._reach(self._spread(m, list(arrived.values())) + one.peak_bytes, cost.input_bytes * one_pass)
            for name in new.values() if one_pass else ():
                self._hold("cotangent", name, cost.input_bytes)

    def _by_hand(self, m: int, arrived: dict[int, _Arrived], new: dict[int, str], *, last: bool) -> None:
        """All at once: the sum of all groups for the weights, beside those that go on."""
        cost = self.costs.modules[m]
        passes: list[Pass] = [cost.propagate] * len(new)
        if last:
            single = len(arrived) == 1
            passes = [cost.both if new else cost.weights] if single else [cost.joint, *passes[1:]]
        total = cost.output_bytes if last and sum(one.dense is not None for one in arrived.values()) > 1 else 0
        self._reach(total + sum(one.peak_bytes for one in passes), len(new) * cost.input_bytes)
        for name in new.values():
            self._hold("cotangent", name, cost.input_bytes)

    def _spread(self, m: int, some: Sequence[_Arrived]) -> int:
        """Bytes of the sum of cotangents, where it is none that is there already."""
        dense = [one for one in some if one.dense]
        pooled = any(one.pooled for one in some)
        size = self.costs.modules[m].output_bytes
        return size * ((len(dense) > 1) + (bool(dense) and pooled))

    def _gradient(self, owner: str, size: int) -> None:
        if ("gradient", owner) in self.alive:
            self._reach(size, 0)
        else:
            self._hold("gradient", owner, size)
            self._reach(0, 0)

    def _update(self, m: int) -> None:
        for owner in (f"module {m}", *(head for head, home in self.owners.items() if home == m)):
            if ("gradient", owner) in self.alive:
                self._let_go("gradient", owner)

    def _hold(self, kind: str, name: str, size: int = 0, holders: int = 1) -> None:
        key = (kind, name)
        if key not in self.alive:
            self.alive[key] = size
            self.level += size
            self.gradients += size * (kind == "gradient")
        self.holders[key] += holders

    def _let_go(self, kind: str, name: str) -> None:
        key = (kind, name)
        if key not in self.alive:  # the images, which are the caller's
            return
        self.holders[key] -= 1
        if not self.holders[key]:
            size = self.alive.pop(key)
            self.level -= size
            self.gradients -= size * (kind == "gradient")

    def _reach(self, transient: int, activations: int) -> None:
        self.activations = max(self.activations, self.level - self.gradients + activations)
        self.moment += 1
        if self.level + transient > self.peak:
            self.peak, self.peak_task, self.peak_moment = self.level + transient, self.task, self.moment
        if self.moment == self.write_down:
            self.at_peak = {**self.alive, ("transient", str(self.task)): transient}


def _output(m: int) -> str:
    return f"output of module {m}"
