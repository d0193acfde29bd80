"""The step plan: the task graph of one training step, and the order and lifetimes a schedule gives it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum

from torch import nn

from mlaan.learning import Supervision, head_forms, light_shape
from mlaan.models import borrowed


class Kind(Enum):
    """What a task does with its module; architecture.md has the words."""

    FORWARD = "Forward"
    REBUILD = "Rebuild"
    HEAD = "Head"
    PROPAGATE = "Propagate"
    BACKWARD = "Backward"
    NORM = "Norm"
    UPDATE = "Update"


@dataclass(frozen=True)
class Task:
    """One node of the graph.

    Attributes:
        kind: what is done.
        module: to which local module.
        index: HEAD: the loss, as its place in the supervision; PROPAGATE: the reach its cotangents have left, the
            module itself included; else 0.
    """

    kind: Kind
    module: int
    index: int = 0

    def __str__(self) -> str:
        if self.kind is Kind.NORM:
            return "Norm"
        inner = f"{self.module}, {self.index}" if self.kind in (Kind.HEAD, Kind.PROPAGATE) else f"{self.module}"
        return f"{self.kind.value}({inner})"


@dataclass(frozen=True)
class TaskGraph:
    """The tasks of one step and what each waits for; no order yet.

    Attributes:
        modules: number K of local modules.
        groups: for each module the reaches left, rising, of the groups of cotangents that come to its output.
            Reach beyond module 0 is cut off, so groups that no longer differ are one.
        needs: for each task the tasks before it.
        sources: for each (module, reach left) the losses that enter that group at this module.
        heads: for each loss the first loss with the same head.
        weights: for each loss the first loss whose head trains one of the same weights; of those linked by others, too.
        calls: for each loss the first loss whose Head can share a call with its own: see `learning.head_forms`.
        light: for each loss whether its head is light: `learning.light_shape`.
    """

    modules: int
    groups: tuple[tuple[int, ...], ...]
    needs: Mapping[Task, tuple[Task, ...]]
    sources: Mapping[tuple[int, int], tuple[int, ...]]
    heads: tuple[int, ...]
    weights: tuple[int, ...]
    calls: tuple[int, ...]
    light: tuple[bool, ...]

    def merged(self, module: int) -> bool:
        """Whether the module's only group goes on, so that Propagate and Backward are one ordinary backward."""
        return len(self.groups[module]) == 1 and self.groups[module][0] >= 2

    def passes(self, module: int) -> list[Task]:
        """The module's backward passes, Propagates first."""
        groups = self.groups[module]
        propagates = [] if self.merged(module) else [Task(Kind.PROPAGATE, module, n) for n in groups if n >= 2]
        return [*propagates, Task(Kind.BACKWARD, module)] if groups else []


def build_graph(
    modules: int, supervision: Supervision, local_modules: Sequence[nn.Module], *, global_norm: bool = False
) -> TaskGraph:
    """The task graph of a supervision.

    A loss of reach r at module j comes to module m <= j with left = r - (j - m), at most m + 1 because there is
    nothing below module 0. Its cotangent goes on to module m - 1 while left >= 2.

    Args:
        local_modules: the K modules, to see which heads read a module's weights through twins or directly: these
            weights may move only after such heads.
        global_norm: gradients are clipped by their common norm: a task Norm, of module 0, waits for all gradients,
            and every Update for it.
    """
    supervision.check(modules)
    losses = supervision.losses
    groups: list[set[int]] = [set() for _ in range(modules)]
    sources: dict[tuple[int, int], tuple[int, ...]] = {}
    for index, loss in enumerate(losses):
        left = min(loss.reach, loss.module + 1)
        sources[loss.module, left] = (*sources.get((loss.module, left), ()), index)
        for step in range(left):
            groups[loss.module - step].add(left - step)
    shared = _firsts([id(loss.head) for loss in losses])
    calls, light = _firsts(head_forms(losses)), tuple(light_shape(loss) is not None for loss in losses)
    weights = _linked([{id(p) for p in loss.head.parameters() if p.requires_grad} for loss in losses])
    groups_of = tuple(tuple(sorted(some)) for some in groups)
    graph = TaskGraph(modules, groups_of, {}, sources, shared, weights, calls, light)
    heads = [Task(Kind.HEAD, loss.module, index) for index, loss in enumerate(losses)]
    needs: dict[Task, tuple[Task, ...]] = {}
    for m in range(modules):
        forward = Task(Kind.FORWARD, m)
        needs[forward] = (Task(Kind.FORWARD, m - 1),) if m else ()
        for head in heads:
            if head.module == m:
                needs[head] = (forward,)
        passes = graph.passes(m)
        for task in passes[:-1]:
            needs[task] = _arrivals(graph, m, task.index)
        if passes:
            every = [arrival for left in graph.groups[m] for arrival in _arrivals(graph, m, left)]
            needs[passes[-1]] = (*passes[:-1], *every)
    for m, readers in enumerate(_readers(supervision, local_modules)):
        last = graph.passes(m)[-1:]
        needs[Task(Kind.UPDATE, m)] = (Task(Kind.FORWARD, m), *last, *(heads[index] for index in sorted(readers)))
    if global_norm:
        norm = Task(Kind.NORM, 0)
        needs = {t: (*some, norm) if t.kind is Kind.UPDATE else some for t, some in needs.items()}
        needs[norm] = tuple(task for task in needs if task.kind in (Kind.HEAD, Kind.BACKWARD))
    return replace(graph, needs=needs)


def _firsts(keys: Sequence[object]) -> tuple[int, ...]:
    """For each key the first place where it stands."""
    first = {key: place for place, key in reversed(list(enumerate(keys)))}
    return tuple(first[key] for key in keys)


def _linked(sets: Sequence[set[int]]) -> tuple[int, ...]:
    """For each set the first one that it has something in common with, directly or through others."""
    first = list(range(len(sets)))
    owner: dict[int, int] = {}
    for place, some in enumerate(sets):
        for item in some:
            one, other = sorted((first[owner.setdefault(item, place)], first[place]))
            first = [one if root == other else root for root in first]
    return tuple(first)


def _arrivals(graph: TaskGraph, module: int, left: int) -> tuple[Task, ...]:
    """The tasks that bring the cotangents of one group to a module's output."""
    found = [Task(Kind.HEAD, module, index) for index in graph.sources.get((module, left), ())]
    above = module + 1
    if above < graph.modules and left + 1 in graph.groups[above]:
        merged = graph.merged(above)
        found.append(Task(Kind.BACKWARD, above) if merged else Task(Kind.PROPAGATE, above, left + 1))
    return tuple(found)


def _readers(supervision: Supervision, local_modules: Sequence[nn.Module]) -> list[set[int]]:
    """For each module the losses after whose heads its Update may run.

    These are the heads it updates (a head belongs to the last module that it taps), and every head that reads its
    weights, directly or through a twin that follows them.
    """
    home = head_homes(supervision)
    parts = {id(loss.head): nn.ModuleList([loss.head, *borrowed(loss.head)]) for loss in supervision.losses}
    follows = {
        id(p): id(q)
        for t in supervision.twins
        for p, q in zip(t.block.parameters(), t.source.parameters(), strict=True)
    }
    owned = [{id(p) for p in module.parameters()} for module in local_modules]
    readers: list[set[int]] = [set() for _ in local_modules]
    for index, loss in enumerate(supervision.losses):
        read = {id(p) for p in parts[id(loss.head)].parameters()}
        read |= {follows[p] for p in read if p in follows}
        for m, own in enumerate(owned):
            if home[id(loss.head)] == m or read & own:
                readers[m].add(index)
    return readers


def head_homes(supervision: Supervision) -> dict[int, int]:
    """For each head, by id, the module whose Update moves it: the last that it taps."""
    return {id(loss.head): loss.module for loss in sorted(supervision.losses, key=lambda loss: loss.module)}
