"""Schedules: one task graph, run in different orders and with different lifetimes of what is saved."""

from dataclasses import dataclass, replace

from mlaan.errors import UserError
from mlaan.plan.graph import Kind, Task, TaskGraph

_BACKWARD_KINDS = (Kind.PROPAGATE, Kind.BACKWARD)
# Within a module: gradients that can go are let go first, and Backward, its last pass, comes after the Propagates.
_EAGERNESS = {Kind.UPDATE: 0, Kind.PROPAGATE: 1, Kind.BACKWARD: 2, Kind.HEAD: 3}


@dataclass(frozen=True)
class Step:
    """One task in its place in the order.

    Attributes:
        task: what runs.
        keep: FORWARD only: whether what the backward needs is kept.
        drops: modules whose saved tensors are let go of with this step, which is the last to use them.
        joined: HEAD only: Heads of other modules with the same auxiliary network, run in the same call on the
            outputs joined along the batch, with batch statistics of each module's own.
    """

    task: Task
    keep: bool = False
    drops: tuple[int, ...] = ()
    joined: tuple[Task, ...] = ()

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The task and those joined with it."""
        return (self.task, *self.joined)


@dataclass(frozen=True)
class StepPlan:
    """A task graph in the order in which one stream runs it.

    Attributes:
        graph: the tasks and what each waits for.
        steps: all of them in order, with Rebuilds where the memory policy asks for them.
        window: the most modules whose saved tensors are alive at once.
    """

    graph: TaskGraph
    steps: tuple[Step, ...]
    window: int

    def rebuilds(self, module: int) -> int:
        """How often a step rebuilds the module's saved tensors from its input."""
        return sum(step.task == Task(Kind.REBUILD, module) for step in self.steps)


def make_plan(graph: TaskGraph, schedule: str = "lean", window: int = 0, recompute: str = "none") -> StepPlan:
    """Order a graph.

    Args:
        schedule: "lean" runs whatever can run before the next Forward, so that as many modules are alive as the
            largest reach; "windowed" runs Forwards until `window` are alive, then sweeps back; "full" is a window
            of all. In these two, Heads that share an auxiliary network are joined.
        window: live window of the windowed schedule.
        recompute: "none" keeps what a Forward saved until the module's last backward pass. "once" rebuilds it before
            the first pass and keeps it, unless no other Forward comes between. "each" keeps at most one module at a
            time and rebuilds it for every pass that another module's work comes before.

    Raises:
        UserError: a window smaller than the largest reach or larger than the number of modules.
    """
    largest = max((max(groups) for groups in graph.groups if groups), default=1)
    if schedule == "windowed" and not largest <= window <= graph.modules:
        raise UserError(
            f"memory.window = {window} must be from {largest}, the largest reach, to {graph.modules}, the modules"
        )
    fill = {"lean": 0, "windowed": window, "full": graph.modules}[schedule]
    joined = _order(graph, fill)
    steps = _lifetimes(graph, [task for tasks in joined for task in tasks], recompute)
    followers = {task for tasks in joined for task in tasks[1:]}
    partners = {tasks[0]: tuple(tasks[1:]) for tasks in joined}
    steps = [replace(s, joined=partners.get(s.task, ())) for s in steps if s.task not in followers]
    alive, peak = set[int](), 0
    for step in steps:
        if step.keep or step.task.kind is Kind.REBUILD:
            alive.add(step.task.module)
        peak = max(peak, len(alive))
        alive -= set(step.drops)
    return StepPlan(graph, tuple(steps), peak)


def _order(graph: TaskGraph, fill: int) -> list[list[Task]]:
    """A topological order: Forwards until `fill` modules are alive, then all else that can run, and so on.

    With a window to fill, each Head brings those along that share its network and can run too.
    """
    order: list[list[Task]] = []
    done: set[Task] = set()
    waiting = set(graph.needs)
    alive, filling = 0, True
    while waiting:
        ready = [task for task in waiting if done.issuperset(graph.needs[task])]
        others = [task for task in ready if task.kind is not Kind.FORWARD]
        forwards = [task for task in ready if task.kind is Kind.FORWARD]
        filling = bool(forwards) and (not others or (filling and alive < fill))
        task = forwards[0] if filling else min(others, key=_urgency)
        together = [task]
        if fill and task.kind is Kind.HEAD:
            for other in sorted(others, key=_urgency):
                same = other.kind is Kind.HEAD and graph.heads[other.index] == graph.heads[task.index]
                if same and all(other.module != member.module for member in together):
                    together.append(other)
        order.append(together)
        done.update(together)
        waiting.difference_update(together)
        if task.kind is Kind.FORWARD:
            alive += bool(graph.groups[task.module])
        elif task.kind is Kind.BACKWARD:
            alive -= 1
    return order


def _urgency(task: Task) -> tuple[int, int, int]:
    return -task.module, _EAGERNESS[task.kind], task.index


def _lifetimes(graph: TaskGraph, order: list[Task], recompute: str) -> list[Step]:
    """Decide for every Forward whether it keeps, for every pass whether a Rebuild comes first, and what is dropped."""
    at = {task: place for place, task in enumerate(order)}
    keeps: set[Task] = set()
    rebuilt: set[Task] = set()
    dropped: dict[Task, int] = {}
    for m in range(graph.modules):
        passes = sorted(graph.passes(m), key=at.__getitem__)
        if not passes:
            continue
        holder = Task(Kind.FORWARD, m)
        for number, task in enumerate(passes):
            between = order[at[holder] + 1 : at[task]]
            if _interrupted(between, m, recompute, first=number == 0):
                if number:
                    dropped[holder] = m
                rebuilt.add(task)
            elif number == 0:
                keeps.add(holder)
            holder = task
        dropped[passes[-1]] = m
    steps = []
    for task in order:
        if task in rebuilt:
            steps.append(Step(Task(Kind.REBUILD, task.module)))
        drops = (dropped[task],) if task in dropped else ()
        steps.append(Step(task, keep=task in keeps, drops=drops))
    return steps


def _interrupted(between: list[Task], module: int, recompute: str, *, first: bool) -> bool:
    """Whether the policy lets go of a module's saved tensors while the tasks `between` run."""
    others = {task.kind for task in between if task.module != module}
    if recompute == "each":
        return bool(others & {Kind.FORWARD, *_BACKWARD_KINDS})
    return recompute == "once" and first and Kind.FORWARD in others
