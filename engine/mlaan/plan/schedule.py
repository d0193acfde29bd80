"""Schedules: one task graph, run in different orders and with different lifetimes of what is saved."""

from dataclasses import dataclass, replace

from mlaan.errors import UserError
from mlaan.plan.graph import Kind, Task, TaskGraph

LARGE_TOGETHER = 4
"""Leap networks in one call at most: what all of them keep is alive at once."""

_BACKWARD_KINDS = (Kind.PROPAGATE, Kind.BACKWARD)
# Within a module: gradients that can go are let go first, and Backward, its last pass, comes after the Propagates.
_EAGERNESS = {Kind.NORM: 0, Kind.UPDATE: 0, Kind.PROPAGATE: 1, Kind.BACKWARD: 2, Kind.HEAD: 3}


@dataclass(frozen=True)
class Step:
    """One task in its place in the order.

    Attributes:
        task: what runs.
        keep: FORWARD only: whether what the backward needs is kept.
        drops: modules whose saved tensors are let go of with this step, which is the last to use them.
        joined: tasks run in the same call. To a HEAD: Heads of other modules with the same auxiliary network, on the
            outputs joined along the batch, with batch statistics of each module's own; light heads of one width, and up
            to LARGE_TOGETHER leap networks alike. To a PROPAGATE: the module's other passes, which share one read of
            what is saved.
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
            In all, light heads of one width are joined, and a module's passes, where they can run together.
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
    leaders = {task: tasks[0] for tasks in joined for task in tasks[1:]}
    partners = {tasks[0]: tuple(tasks[1:]) for tasks in joined}
    drops = {leaders[s.task]: s.drops for s in steps if s.task in leaders and s.drops}
    steps = [
        replace(s, joined=partners.get(s.task, ()), drops=s.drops + drops.get(s.task, ()))
        for s in steps
        if s.task not in leaders
    ]
    alive, peak = set[int](), 0
    for step in steps:
        if step.keep or step.task.kind is Kind.REBUILD:
            alive.add(step.task.module)
        peak = max(peak, len(alive))
        alive -= set(step.drops)
    return StepPlan(graph, tuple(steps), peak)


def _order(graph: TaskGraph, fill: int) -> list[list[Task]]:
    """A topological order: Forwards until `fill` modules are alive, then all else that can run, and so on.

    Each task brings those along that can run in its call: see `Step.joined`.
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
        if task.kind is Kind.HEAD:
            for other in sorted(others, key=_urgency):
                if other.kind is Kind.HEAD and all(_share_call(graph, other, member, fill) for member in together):
                    together.append(other)
            if not graph.light[task.index] and len({graph.heads[one.index] for one in together}) > 1:
                together = together[:LARGE_TOGETHER]
        elif task.kind is Kind.PROPAGATE:
            passes = graph.passes(task.module)
            if done.union(passes).issuperset(need for one in passes for need in graph.needs[one]):
                together += [one for one in passes if one != task and one in waiting]
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


def _share_call(graph: TaskGraph, one: Task, other: Task, fill: int) -> bool:
    """Whether two Heads can run in one call: light ones always, others with a window to fill and on two modules."""
    if one == other or graph.calls[one.index] != graph.calls[other.index]:
        return False
    other_network = graph.heads[one.index] != graph.heads[other.index]
    return (graph.light[one.index] and other_network) or (fill > 0 and one.module != other.module)


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
