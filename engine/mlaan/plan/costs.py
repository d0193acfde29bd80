"""What the parts of a step cost: local modules out of stem and blocks, heads with their losses, and what stays."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from mlaan.learning import LocalLoss, Partition, PoolLinear, Supervision, light_shape
from mlaan.models import Backbone, borrowed, on_meta
from mlaan.models.cost import (
    Device,
    ModuleCost,
    Pass,
    add_bytes,
    chain,
    interpolate,
    interpolate_pass,
    shape_bytes,
)
from mlaan.models.measure import autocast_bytes, measure, remembered, structure
from mlaan.models.meter import Meter
from mlaan.models.passes import read, scratch_of
from mlaan.plan.graph import Kind, Task, head_homes
from mlaan.plan.schedule import StepPlan
from mlaan_kernels.blocks import Settings

BATCHES = (16, 48)
"""The batch sizes that figures for others are interpolated from."""

OPTIMIZER_BYTES = 4
"""Of state per trained parameter: one float32 number, SGD's momentum."""


@dataclass(frozen=True, eq=False)
class HeadCost:
    """One Head: a head with its loss, forward and backward in one go.

    Attributes:
        run: on one module's output.
        kept_bytes: what it holds between forward and backward.
        more_peak_bytes: added to the peak by each further output that runs in the same call.
        cotangent_bytes: what it sends back.
        pooled: that is (N, C), of a light head.
        gradient_bytes: of the head's own weights.
        home: the module whose Update moves them.
        module: the one that it taps.
        network: the first loss with the same head.
    """

    run: Pass
    kept_bytes: int
    more_peak_bytes: int
    cotangent_bytes: int
    pooled: bool
    gradient_bytes: int
    home: int
    module: int
    network: int


@dataclass(frozen=True, eq=False)
class PlanCosts:
    """Costs of all parts on one batch.

    Attributes:
        modules: the local modules'.
        heads: each loss's auxiliary network with the loss.
        input_bytes: of the images.
        fused: whether fused kernels run the plan.
        static: bytes that are there before and after a step: "parameters", "twins", "optimizer", "buffers"; where a
            batch is cut into parts, "held": gradients of the parts before, and the others' images; "average", where
            one of the weights is kept.
        update_bytes: for each module what its Update reads and writes.
        dtype: of activations.
        batch: images in a step.
    """

    modules: tuple[ModuleCost, ...]
    heads: tuple[HeadCost, ...]
    input_bytes: int
    fused: bool = False
    static: dict[str, int] = field(default_factory=dict)
    update_bytes: tuple[int, ...] = ()
    dtype: torch.dtype = torch.float32
    batch: int = 1

    def run(self, plan: StepPlan, task: Task) -> Pass:
        """The pass that a task runs; an Update's is empty."""
        cost = self.modules[task.module]
        match task.kind:
            case Kind.FORWARD:
                return cost.forward
            case Kind.REBUILD:
                return cost.kept
            case Kind.HEAD:
                return self.heads[task.index].run
            case Kind.PROPAGATE:
                return cost.propagate
            case Kind.BACKWARD:
                return cost.both if plan.graph.merged(task.module) else cost.weights
            case _:
                return Pass()

    @property
    def gradient_bytes(self) -> int:
        """Of all trained weights."""
        heads = {head.network: head.gradient_bytes for head in self.heads}
        return sum(cost.gradient_bytes for cost in self.modules) + sum(heads.values())

    def flops(self, plan: StepPlan, task: Task) -> int:
        """Floating-point operations of a task, multiply and add counted as two."""
        return self.run(plan, task).flops


def measure_parts(
    backbone: Backbone,
    input_shape: Sequence[int],
    batch: int,
    dtype: torch.dtype,
    settings: Settings | None = None,
    *,
    device: Device = "cuda",
    straight: bool = False,
) -> list[ModuleCost]:
    """Costs of the stem and of every block for `batch` images of `input_shape` (C, H, W), on the meta device.

    Args:
        settings: of the fused kernels that they run by, if they do.
        device: "cpu" adds what oneDNN's convolutions take while they run.
        straight: interpolate between two batch sizes, each measured once: for a search over many.
    """
    shape: tuple[int, ...] = (batch, *input_shape)
    parts = []
    for part in (backbone.stem, *(block.module for block in backbone.blocks)):
        last = bool(parts) and parts[-1].channels_last
        parts.append(_part(part, shape, dtype, settings, device, straight=straight, channels_last=last))
        shape = parts[-1].output_shape
    return parts


def _part(
    part: nn.Module,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    settings: Settings | None,
    device: Device,
    *,
    straight: bool,
    channels_last: bool,
) -> ModuleCost:
    def at(batch: int) -> ModuleCost:
        return measure(part, (batch, *shape[1:]), dtype, settings, device, channels_last=channels_last)

    if not straight or shape[0] in BATCHES:
        return at(shape[0])
    low, high = map(at, BATCHES)
    return remembered(("straight", low, high, shape[0]), lambda: interpolate(low, high, *BATCHES, shape[0]))


def combine(
    parts: Sequence[ModuleCost],
    partition: Partition,
    supervision: Supervision,
    images: Sequence[int],
    dtype: torch.dtype,
    *,
    fused: bool = False,
    device: Device = "cuda",
    optimizer_bytes: int = OPTIMIZER_BYTES,
    straight: bool = False,
    accumulate: int = 1,
    average_bytes: int = 0,
) -> PlanCosts:
    """Costs of a partition's modules out of those of stem and blocks, and of every loss with its head.

    Args:
        images: shape (N, C, H, W) of the batch.
        fused: fused kernels run the plan, which never spread a light head's cotangent over the pixels.
        device, straight: as for `measure_parts`.
        optimizer_bytes: of optimizer state per trained parameter.
        accumulate: batches of `images` whose gradients are added up before one update.
        average_bytes: of the average of the weights.
    """
    stem, *blocks = parts
    modules = tuple(chain([*([stem] if a == 0 else []), *blocks[a:b]]) for a, b in partition.spans)
    homes = head_homes(supervision)
    heads = []
    for loss in supervision.losses:
        shape = modules[loss.module].output_shape
        alike = [place for place, other in enumerate(supervision.losses) if other.head is loss.head]
        measured = _HeadMeasure(loss, shape, tuple(images), dtype, device, straight=straight, shared=len(alike) > 1)
        heads.append(measured.cost(homes[id(loss.head)], alike[0], light=fused and light_shape(loss) is not None))
    static, update = _static(modules, supervision, homes, optimizer_bytes)
    size = shape_bytes(images, dtype)
    costs = PlanCosts(modules, tuple(heads), size, fused, static, update, dtype, images[0])
    if accumulate > 1:
        costs.static["held"] = costs.gradient_bytes + (accumulate - 1) * size
    if average_bytes:
        costs.static["average"] = average_bytes
    return costs


def _static(
    modules: Sequence[ModuleCost], supervision: Supervision, homes: dict[int, int], optimizer_bytes: int
) -> tuple[dict[str, int], tuple[int, ...]]:
    """What is always there; and what each Update reads and writes: gradients, weights and state, the last two twice.

    Twins, read and written beside their sources, are counted with the Update of the heads that they stand in.
    """
    trained = [cost.gradient_bytes for cost in modules]
    counts = [cost.parameters for cost in modules]
    static = {
        "parameters": sum(cost.weight_bytes for cost in modules),
        "twins": 0,
        "optimizer": 0,
        "buffers": sum(cost.buffer_bytes for cost in modules),
    }
    known: set[int] = set()
    twins = [0] * len(modules)
    for head in supervision.heads:
        for p in head.parameters():
            if id(p) in known:
                continue
            known.add(id(p))
            home = homes[id(head)]
            if p.requires_grad:
                static["parameters"] += _size(p)
                trained[home] += _size(p)
                counts[home] += p.numel()
            else:
                static["twins"] += _size(p)
                twins[home] += _size(p)
        static["buffers"] += sum(map(_size, head.buffers()))
    static["optimizer"] = optimizer_bytes * sum(counts)
    rows = zip(trained, counts, twins, strict=True)
    return static, tuple(3 * size + 2 * optimizer_bytes * count + 3 * twin for size, count, twin in rows)


@dataclass(frozen=True)
class _HeadMeasure:
    """A head with its loss on outputs of `shape`, for batches of `images`."""

    loss: LocalLoss
    shape: tuple[int, ...]
    images: tuple[int, ...]
    dtype: torch.dtype
    device: Device
    straight: bool
    shared: bool

    def cost(self, home: int, network: int, *, light: bool) -> HeadCost:
        """`light`: fused kernels run it, which hold next to nothing."""
        n = self.shape[0]
        run, kept = self._at(n)
        more = self._at(2 * n)[0].peak_bytes - run.peak_bytes if self.shared else 0
        pooled = light or isinstance(self.loss.head, PoolLinear)
        width = self.shape[1] if len(self.shape) == 4 else self.shape[-1]
        cotangent = shape_bytes((n, width) if pooled else self.shape, self.dtype)
        gradient = sum(_size(p) for p in self.loss.head.parameters() if p.requires_grad)
        casts, wider = autocast_bytes(self.loss.head, self.dtype)
        run, kept = add_bytes(run, max(casts, wider), wider), kept + casts
        if light:
            run = replace(run, peak_bytes=3 * cotangent + gradient, end_bytes=cotangent + gradient)
            kept, more = 0, 0
        return HeadCost(run, kept, more, cotangent, pooled, gradient, home, self.loss.module, network)

    def _at(self, batch: int) -> tuple[Pass, int]:
        if not self.straight or batch in BATCHES:
            return self._measured(batch)
        low, high = map(self._measured, BATCHES)
        share = (batch - BATCHES[0]) / (BATCHES[1] - BATCHES[0])
        kept = round(low[1] + (high[1] - low[1]) * share)
        make = lambda: interpolate_pass(low[0], high[0], share)  # noqa: E731
        return remembered(("straight", low[0], high[0], batch), make), kept

    def _measured(self, batch: int) -> tuple[Pass, int]:
        kind = structure(self.loss.head)
        what = (self.loss.criterion, batch, self.shape[1:], self.images[1:], self.dtype, self.device)
        return remembered(None if kind is None else ("head", kind, what), lambda: self._run(batch))

    def _run(self, batch: int) -> tuple[Pass, int]:
        """Holding what the executor's frame holds."""
        head = on_meta(self.loss.head)
        nn.ModuleList([head, *borrowed(head)]).to(self.dtype)
        weights = [p for p in head.parameters() if p.requires_grad]
        x = torch.empty((batch, *self.shape[1:]), device="meta", dtype=self.dtype)
        images = torch.empty((batch, *self.images[1:]), device="meta", dtype=self.dtype)
        labels = torch.zeros(batch, device="meta", dtype=torch.int64)
        with Meter(scratch_of(self.device)) as meter:
            pooling = isinstance(head, PoolLinear)
            z = (head.pool(x) if pooling else x.detach()).requires_grad_()
            output = head.classify(z) if pooling else head(z)
            value: Tensor = self.loss.criterion(output, images, labels)
            kept = meter.level
            grads = torch.autograd.grad(value, [z, *weights], allow_unused=True)
            del value, output
            found = read(meter)
        del grads
        return found, kept


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
