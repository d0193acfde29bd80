"""What a choice of cut, schedule, recomputation and batch would cost, for those who try many."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import nn

from mlaan.learning import EndToEnd, Method, Normalisation, Partition, Site, Supervision, cut
from mlaan.learning.partition import balance
from mlaan.models import Backbone
from mlaan.models.cost import ModuleCost, Pass
from mlaan.plan.costs import PlanCosts, combine, measure_parts
from mlaan.plan.duration import step_seconds, task_time
from mlaan.plan.graph import TaskGraph, build_graph
from mlaan.plan.lanes import choose_lanes, simulate
from mlaan.plan.machine import Machine
from mlaan.plan.predict import predict
from mlaan.plan.schedule import StepPlan, make_plan
from mlaan_kernels.blocks import Settings

T = TypeVar("T")
BALANCED = "balanced"
"""Cuts that balance what is saved when everything that can be is rebuilt: written out as first blocks."""


@dataclass(frozen=True)
class Choice:
    """Settings that decide memory and time; the names mean what they mean in `PartitionConfig` and `MemoryConfig`."""

    modules: int
    cuts: str | tuple[int, ...]
    schedule: str
    window: int
    recompute: str
    batch: int


@dataclass(frozen=True, eq=False)
class Subject:
    """What stays, whatever is chosen.

    Attributes:
        backbone: on the meta device.
        method: puts losses on its partitions.
        image_shape: (C, H, W).
        machine: that the step is to run on.
        dtype: of activations.
        kernels: that run there.
        optimizer_bytes: of optimizer state per trained parameter.
        precision: of matrix products, as `Machine.peak` has it; None: the dtype's.
        lanes: whether tasks run beside each other.
        global_norm: whether all gradients are clipped together.
        normalisation: of the images.
        channels_last: whether weights are laid out so: the backbone's are, heads' will be.
        accumulate: parts that a batch of training is cut into; a choice's batch is one of them.
        average_bytes: of the average of the weights.
    """

    backbone: Backbone
    method: Method
    image_shape: tuple[int, ...]
    machine: Machine
    dtype: torch.dtype = torch.float32
    kernels: Literal["reference", "triton"] = "reference"
    optimizer_bytes: int = 4
    precision: str | None = None
    lanes: bool = False
    global_norm: bool = False
    normalisation: Normalisation | None = None
    channels_last: bool = False
    accumulate: int = 1
    average_bytes: int = 0


@dataclass(frozen=True)
class Estimate:
    """What a choice costs.

    Attributes:
        choice: with cuts as first blocks where BALANCED was asked for.
        peak_bytes: all that is alive at the most, with the machine's workspace.
        seconds: of a step.
        window: modules alive at once.
    """

    choice: Choice
    peak_bytes: int
    seconds: float
    window: int

    @property
    def images_per_second(self) -> float:
        """In training."""
        return self.choice.batch / self.seconds


class _Cut(NamedTuple):
    """A partition with its supervision and graph."""

    site: Site
    supervision: Supervision
    graph: TaskGraph


class Bench:
    """Estimates choices for one subject; whatever two of them share is found once."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.known: dict[Hashable, Any] = {}

    @cached_property
    def shapes(self) -> list[tuple[int, ...]]:
        """Output shape of every block."""
        return self.subject.backbone.block_shapes(self.subject.image_shape)

    @property
    def blocks(self) -> int:
        """The most modules that there can be."""
        return len(self.subject.backbone.blocks)

    def end_to_end(self) -> "Bench":
        """For end-to-end training of the same backbone by the same kernels."""
        bench = Bench(replace(self.subject, method=EndToEnd()))
        bench.shapes = self.shapes
        return bench

    def estimate(self, choice: Choice, *, exact: bool = False) -> Estimate:
        """Peak and time of a step.

        Args:
            exact: measured at the choice's own batch, not interpolated between two others.

        Raises:
            UserError: the choice does not fit the backbone or the method.
        """
        return self._once((choice, exact), lambda: self._estimate(choice, exact))

    def settings(self, recompute: str) -> Settings | None:
        """Of the fused kernels that a policy runs by, if any do."""
        subject = self.subject
        if subject.kernels == "reference" and recompute != "fused":
            return None
        return Settings(subject.dtype, subject.kernels, keep_activations=recompute == "none")

    def _estimate(self, choice: Choice, exact: bool) -> Estimate:
        subject, machine = self.subject, self.subject.machine
        starts = self._once(("cut", choice.modules, choice.cuts), lambda: self._partition(choice, exact)).starts
        made = self._once(("made", starts), lambda: self._make(Partition(starts, self.blocks)))
        where = (starts, choice.schedule, choice.window, choice.recompute)
        plan = self._once(("plan", where), lambda: make_plan(made.graph, *where[1:]))
        settings = self.settings(choice.recompute)
        costs = self._costs(made, settings, choice.batch, exact)
        more = 0.0
        timed = costs
        if settings is not None and subject.kernels == "reference":
            # PyTorch's own operators run then, one by one, and what is rebuilt comes on top
            timed = self._costs(made, None, choice.batch, exact)
            more = sum(_rebuild_seconds(cost.kept, machine) for cost in timed.modules)
        seconds = self._seconds(plan, timed) + more
        peak = predict(plan, costs).peak_bytes + machine.workspace
        cuts = starts if choice.cuts == BALANCED else choice.cuts
        return Estimate(replace(choice, cuts=cuts), peak, seconds, plan.window)

    def _seconds(self, plan: StepPlan, costs: PlanCosts) -> float:
        machine, precision = self.subject.machine, self.subject.precision
        if not self.subject.lanes:
            return step_seconds(plan, costs, machine, precision)
        times = [task_time(plan, costs, step, machine, precision) for step in plan.steps]
        return simulate(plan, choose_lanes(plan, times), times).seconds

    def _partition(self, choice: Choice, exact: bool) -> Partition:
        subject, k = self.subject, choice.modules
        if choice.cuts != BALANCED or not 1 <= k <= self.blocks:
            return cut(subject.backbone, k, choice.cuts, subject.image_shape)
        parts = self._parts(self.settings("once"), choice.batch, exact=exact)
        stem, first, *others = (part.saved_bytes + part.output_bytes for part in parts)
        return Partition(balance([stem + first, *others], k), self.blocks)

    def _make(self, partition: Partition) -> _Cut:
        """Raises UserError where the method does not take such a partition."""
        subject = self.subject
        site = Site(subject.backbone, partition, self.shapes, subject.image_shape, subject.normalisation)
        with torch.device("meta"):
            supervision = subject.method.supervise(site)
        supervision.check(len(partition))
        if subject.channels_last:
            heads: Any = nn.ModuleList([loss.head for loss in supervision.losses])
            heads.to(memory_format=torch.channels_last)
        modules = partition.modules(subject.backbone)
        return _Cut(
            site, supervision, build_graph(len(partition), supervision, modules, global_norm=subject.global_norm)
        )

    def _costs(self, made: _Cut, settings: Settings | None, batch: int, exact: bool) -> PlanCosts:
        subject = self.subject
        form = None if settings is None else settings.keep_activations
        return self._once(
            ("costs", made.site.partition.starts, form, batch, exact),
            lambda: combine(
                self._parts(settings, batch, exact=exact),
                made.site.partition,
                made.supervision,
                (batch, *subject.image_shape),
                subject.dtype,
                fused=settings is not None,
                device=subject.machine.kind,
                optimizer_bytes=subject.optimizer_bytes,
                straight=not exact,
                accumulate=subject.accumulate,
                average_bytes=subject.average_bytes,
            ),
        )

    def _parts(self, settings: Settings | None, batch: int, *, exact: bool) -> list[ModuleCost]:
        subject, form = self.subject, None if settings is None else settings.keep_activations
        return self._once(
            ("parts", form, batch, exact),
            lambda: measure_parts(
                subject.backbone,
                subject.image_shape,
                batch,
                subject.dtype,
                settings,
                device=subject.machine.kind,
                straight=not exact,
            ),
        )

    def _once(self, key: Hashable, make: Callable[[], T]) -> T:
        if key not in self.known:
            self.known[key] = make()
        return self.known[key]


def _rebuild_seconds(one: Pass, machine: Machine) -> float:
    """Of all operators of a pass that are no matrix products."""
    inner = sum(_rebuild_seconds(part, machine) for part in one.parts)
    small = (size for flops, size in one.operators if not flops)
    return inner + sum(max(size / machine.bandwidth, machine.launch) for size in small)
