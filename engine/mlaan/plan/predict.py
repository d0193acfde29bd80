"""What a step plan will cost: floating-point operations, and activation memory over time."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mlaan.learning import LocalLoss, Partition, Supervision, light_shape
from mlaan.models import Backbone
from mlaan.models.cost import ModuleCost, chain, measure
from mlaan.plan.graph import Kind, Task
from mlaan.plan.schedule import Step, StepPlan
from mlaan_kernels.blocks import Settings


@dataclass(frozen=True)
class PlanCosts:
    """Costs of all parts on one batch: the local modules, each auxiliary network with its loss, and the size of what
    each loss sends back. `fused`: by fused kernels."""

    modules: tuple[ModuleCost, ...]
    heads: tuple[ModuleCost, ...]
    cotangent_bytes: tuple[int, ...]
    input_bytes: int
    fused: bool = False

    def flops(self, plan: StepPlan, task: Task) -> int:
        """Floating-point operations of a task, multiply and add counted as two."""
        cost = self.modules[task.module]
        match task.kind:
            case Kind.FORWARD | Kind.REBUILD:
                return cost.forward_flops
            case Kind.HEAD:
                return self.heads[task.index].forward_flops + self.heads[task.index].backward_flops
            case Kind.PROPAGATE:
                return cost.input_flops
            case Kind.BACKWARD:
                return cost.backward_flops if plan.graph.merged(task.module) else cost.weight_flops
            case Kind.UPDATE:
                return 0


@dataclass(frozen=True)
class Prediction:
    """Attributes:
    flops: of the whole step.
    peak_bytes: saved activations, module outputs and cotangents at their most; weights, gradients and the
        kernels' own workspace are not in it.
    peak_task: the task that runs then.
    """

    flops: int
    peak_bytes: int
    peak_task: Task


def measure_parts(
    backbone: Backbone,
    input_shape: Sequence[int],
    batch: int,
    dtype: torch.dtype,
    settings: Settings | None = None,
) -> list[ModuleCost]:
    """Costs of the stem and of every block for `batch` images of `input_shape` (C, H, W), on the meta device.

    Args:
        settings: of the fused kernels that they run by, if they do.
    """
    shape: tuple[int, ...] = (batch, *input_shape)
    parts = []
    for part in (backbone.stem, *(block.module for block in backbone.blocks)):
        parts.append(measure(part, shape, dtype, settings))
        shape = parts[-1].output_shape
    return parts


def combine(
    parts: Sequence[ModuleCost],
    partition: Partition,
    supervision: Supervision,
    images: Sequence[int],
    dtype: torch.dtype,
    *,
    fused: bool = False,
) -> PlanCosts:
    """Costs of a partition's modules out of those of stem and blocks, and of every loss with its head.

    Args:
        images: shape (N, C, H, W) of the batch.
        fused: fused kernels run the plan, which never spread a light head's cotangent over the pixels.
    """
    stem, *blocks = parts
    modules = [chain([*([stem] if a == 0 else []), *blocks[a:b]]) for a, b in partition.spans]
    known: dict[object, ModuleCost] = {}
    heads, cotangents = [], []
    for loss in supervision.losses:
        shape = modules[loss.module].output_shape
        light = light_shape(loss) if fused else None
        size = modules[loss.module].output_bytes if light is None else images[0] * light[0] * dtype.itemsize
        cotangents.append(size)
        key = (id(loss.head), id(loss.criterion), shape)
        if key not in known:
            known[key] = measure(_HeadAndLoss(loss, images, dtype), shape, dtype)
        heads.append(known[key])
    return PlanCosts(tuple(modules), tuple(heads), tuple(cotangents), math.prod(images) * dtype.itemsize, fused)


class _HeadAndLoss(nn.Module):
    """An auxiliary network with its loss, from a module's output to one number, on the meta device."""

    def __init__(self, loss: LocalLoss, images: Sequence[int], dtype: torch.dtype) -> None:
        super().__init__()
        self.head, self.criterion = loss.head, loss.criterion
        self.shape, self.dtype = tuple(images), dtype

    def forward(self, h: Tensor) -> Tensor:
        images = torch.empty(self.shape, device="meta", dtype=self.dtype)
        labels = torch.zeros(self.shape[0], device="meta", dtype=torch.int64)
        return self.criterion(self.head(h), images, labels)


def predict(plan: StepPlan, costs: PlanCosts) -> Prediction:
    """Walk through the plan and add up what each task computes and what is alive while it runs."""
    uses = _boundary_uses(plan)
    saved: set[int] = set()
    boundaries: set[int] = {-1}
    cotangents: dict[tuple[int, int], int] = {}
    peak, peak_task = 0, plan.steps[0].task
    for place, step in enumerate(plan.steps):
        task = step.task
        if task.kind is Kind.FORWARD:
            boundaries.add(task.module)
        if step.keep or task.kind is Kind.REBUILD:
            saved.add(task.module)
        alive = sum(costs.modules[m].saved_bytes for m in saved) + sum(cotangents.values())
        alive += sum(costs.modules[m].output_bytes if m >= 0 else costs.input_bytes for m in boundaries)
        transient = _transients(plan, costs, step)
        if alive + transient > peak:
            peak, peak_task = alive + transient, task
        for done in step.tasks:
            _move_cotangents(plan, costs, done, cotangents)
        saved -= set(step.drops)
        boundaries = {m for m in boundaries if uses[m] > place}
    return Prediction(sum(costs.flops(plan, task) for step in plan.steps for task in step.tasks), peak, peak_task)


def _boundary_uses(plan: StepPlan) -> dict[int, int]:
    """For every module's output (-1: the images) the place of the last step that it is alive in."""
    last: dict[int, int] = {}
    for place, step in enumerate(plan.steps):
        for m in _touched(plan, step):
            last[m] = place
    return last


def _touched(plan: StepPlan, step: Step) -> list[int]:
    task = step.task
    if task.kind is Kind.HEAD:
        return [*(head.module for head in step.tasks), -1]
    if task.kind is Kind.UPDATE:
        return []
    return [task.module - 1, task.module]


def _transients(plan: StepPlan, costs: PlanCosts, step: Step) -> int:
    """What a step's tasks hold together; over autograd, networks that share a call run one after the other."""
    networks: dict[int, int] = {}
    for task in step.tasks:
        network = plan.graph.heads[task.index] if task.kind is Kind.HEAD and not costs.fused else -1
        networks[network] = networks.get(network, 0) + _transient(plan, costs, task)
    return max(networks.values())


def _transient(plan: StepPlan, costs: PlanCosts, task: Task) -> int:
    """What only this task holds: a head's own activations, and the cotangent that comes out of it."""
    if task.kind is Kind.HEAD:
        return costs.heads[task.index].saved_bytes + costs.cotangent_bytes[task.index]
    if task.kind in (Kind.PROPAGATE, Kind.BACKWARD) and task.module:
        goes_on = task.kind is Kind.PROPAGATE or plan.graph.merged(task.module)
        return costs.modules[task.module - 1].output_bytes if goes_on else 0
    return 0


def _move_cotangents(plan: StepPlan, costs: PlanCosts, task: Task, alive: dict[tuple[int, int], int]) -> None:
    module, groups = task.module, plan.graph.groups[task.module]
    if task.kind is Kind.HEAD:
        for left in groups:
            if task.index in plan.graph.sources.get((module, left), ()):
                alive[module, left] = max(alive.get((module, left), 0), costs.cotangent_bytes[task.index])
    elif task.kind is Kind.PROPAGATE:
        alive[module - 1, task.index - 1] = costs.modules[module - 1].output_bytes
    elif task.kind is Kind.BACKWARD:
        for left in groups:
            alive.pop((module, left), None)
        if plan.graph.merged(module):
            alive[module - 1, groups[0] - 1] = costs.modules[module - 1].output_bytes
