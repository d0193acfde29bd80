"""The step plan in words and figures: what `mlaan plan` prints."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from mlaan.learning import EndToEnd, Site, Supervision, cut
from mlaan.models.cost import Device, ModuleCost
from mlaan.plan.costs import OPTIMIZER_BYTES, PlanCosts, combine, measure_parts
from mlaan.plan.duration import step_seconds, task_time
from mlaan.plan.graph import Kind, build_graph, head_homes
from mlaan.plan.machine import Machine
from mlaan.plan.predict import predict
from mlaan.plan.schedule import Step, StepPlan, make_plan
from mlaan_kernels.blocks import Settings

KINDS = (
    "parameters",
    "twins",
    "optimizer",
    "buffers",
    "held",
    "average",
    "images",
    "gradient",
    "saved",
    "boundary",
    "cotangent",
    "transient",
)
"""Of what is alive at a peak, in the order in which it is shown."""
_SHOWN = 2**20 // 20
"""Bytes from which on an explanation tells a thing by itself: less would show as 0.0 MiB."""


@dataclass(frozen=True)
class Planned:
    """Everything a plan is about.

    Attributes:
        machine: that it is to run on, for times and workspace; None: memory on the backbone's own device, no times.
        optimizer_bytes: of optimizer state per trained parameter.
        precision: of matrix products, as `Machine.peak` has it; None: the dtype's.
        accumulate: parts that a batch of training is cut into; `batch` is then one of them.
        average_bytes: of the average of the weights.
    """

    site: Site
    supervision: Supervision
    plan: StepPlan
    batch: int
    dtype: torch.dtype = torch.float32
    settings: Settings | None = None
    machine: Machine | None = None
    optimizer_bytes: int = OPTIMIZER_BYTES
    precision: str | None = None
    accumulate: int = 1
    average_bytes: int = 0

    @property
    def device(self) -> Device:
        """The kind of device whose convolutions are counted."""
        if self.machine is not None:
            return self.machine.kind
        return "cpu" if next(self.site.backbone.net.parameters()).device.type == "cpu" else "cuda"

    @property
    def workspace(self) -> int:
        """Bytes that libraries take beside a step's tensors."""
        return 0 if self.machine is None else self.machine.workspace

    def parts(self, *, fused: bool) -> list[ModuleCost]:
        """Costs of stem and blocks."""
        settings = self.settings if fused else None
        site = self.site
        return measure_parts(site.backbone, site.image_shape, self.batch, self.dtype, settings, device=self.device)

    def costs(self, site: Site, supervision: Supervision, parts: Sequence[ModuleCost], *, fused: bool) -> PlanCosts:
        """Of a partition and a supervision of the same backbone."""
        images = (self.batch, *site.image_shape)
        return combine(
            *(parts, site.partition, supervision, images, self.dtype),
            fused=fused,
            device=self.device,
            optimizer_bytes=self.optimizer_bytes,
            accumulate=self.accumulate,
            average_bytes=self.average_bytes,
        )


def report(planned: Planned) -> dict[str, Any]:
    """Figures per module and in all, beside end-to-end and checkpointed end-to-end, as plain data.

    Bytes are bytes, FLOPs count multiply and add as two, both for one step on one batch with activations in the plan's
    dtype; seconds are those of one stream on the machine, where there is one. Where fused kernels run the plan, they
    run the checkpointed rival too; plain end-to-end keeps what PyTorch keeps.
    """
    site, fused = planned.site, planned.settings is not None
    eager = planned.parts(fused=False)
    parts = planned.parts(fused=True) if fused else eager
    costs = planned.costs(site, planned.supervision, parts, fused=fused)
    plain, _, _ = _end_to_end(planned, eager, fused=False)
    _, segments, checkpointed = _end_to_end(planned, parts, fused=fused)
    return {
        "backbone": site.backbone.name,
        "batch": planned.batch,
        "accumulate": planned.accumulate,
        "dtype": str(planned.dtype).removeprefix("torch."),
        "fused": fused,
        "device": planned.device,
        "machine": None if planned.machine is None else planned.machine.name,
        "input_shape": list(site.image_shape),
        "window": planned.plan.window,
        "modules": [_module(planned, costs, m) for m in range(site.modules)],
        "steps": [_step(planned, costs, step) for step in planned.plan.steps],
        "weights": _weights(planned),
        "plans": {
            "this plan": _figures(planned, planned.plan, costs),
            "end-to-end": _figures(planned, *plain),
            f"end-to-end, {segments} checkpointed segments": _figures(planned, *checkpointed),
        },
    }


def _figures(planned: Planned, plan: StepPlan, costs: PlanCosts) -> dict[str, Any]:
    prediction = predict(plan, costs)
    seconds = None
    if planned.machine is not None:
        seconds = step_seconds(plan, costs, planned.machine, planned.precision)
    return {
        "flops": prediction.flops,
        "peak_bytes": prediction.peak_bytes + planned.workspace,
        "static_bytes": dict(costs.static),
        "step_bytes": prediction.step_bytes,
        "at_peak": {kind: prediction.of(kind) for kind in KINDS} | {"workspace": planned.workspace},
        "peak_activation_bytes": prediction.activation_bytes,
        "peak_task": str(prediction.peak_task),
        "seconds": seconds,
        "images_per_second": None if seconds is None else planned.batch / seconds,
    }


def _step(planned: Planned, costs: PlanCosts, step: Step) -> dict[str, Any]:
    """A step of the plan in figures."""
    runs = [costs.run(planned.plan, task) for task in step.tasks]
    update = costs.update_bytes[step.task.module] if step.task.kind is Kind.UPDATE else 0
    figures: dict[str, Any] = {
        "tasks": [str(task) for task in step.tasks],
        "flops": sum(one.flops for one in runs),
        "bytes": sum(one.bytes for one in runs) + update,
    }
    if planned.machine is not None:
        time = task_time(planned.plan, costs, step, planned.machine, planned.precision)
        figures |= {"seconds": time.seconds, "share": time.share}
    return figures


def _module(planned: Planned, costs: PlanCosts, m: int) -> dict[str, Any]:
    blocks = planned.site.backbone.blocks
    a, b = planned.site.partition.spans[m]
    tasks = [task for step in planned.plan.steps for task in step.tasks if task.module == m]
    home = head_homes(planned.supervision)
    heads = {key: head for key, head in _heads(planned).items() if home[key] == m}
    return {
        "blocks": f"{blocks[a].label}-{blocks[b - 1].label}",
        "tasks": [str(task) for task in tasks],
        "losses": [
            {"kind": loss.kind, "reach": loss.reach, "weight": loss.weight}
            for loss in planned.supervision.losses
            if loss.module == m
        ],
        "flops": sum(costs.flops(planned.plan, task) for task in tasks),
        "head_flops": sum(costs.flops(planned.plan, task) for task in tasks if task.kind is Kind.HEAD),
        "parameters": costs.modules[m].parameters,
        "head_parameters": _count(heads.values(), trained=True),
        "saved_bytes": costs.modules[m].saved_bytes + costs.modules[m].output_bytes,
        "rebuilds": planned.plan.rebuilds(m),
    }


def _weights(planned: Planned) -> dict[str, int]:
    heads = _heads(planned).values()
    return {
        "backbone": sum(p.numel() for p in planned.site.backbone.net.parameters()),
        "heads": _count(heads, trained=True),
        "twins": _count(heads, trained=False),
    }


def _heads(planned: Planned) -> dict[int, nn.Module]:
    """Every head once, by id, less the backbone's own classifier."""
    return {id(head): head for head in planned.supervision.heads if head is not planned.site.backbone.classifier}


def _count(modules: Any, *, trained: bool) -> int:
    return sum(p.numel() for p in nn.ModuleList(modules).parameters() if p.requires_grad == trained)


def _end_to_end(
    planned: Planned, parts: Sequence[ModuleCost], *, fused: bool
) -> tuple[tuple[StepPlan, PlanCosts], int, tuple[StepPlan, PlanCosts]]:
    """End-to-end training of the same backbone: as it is, and with the segment count of the lowest peak."""
    backbone = planned.site.backbone

    def made(segments: int, recompute: str) -> tuple[StepPlan, PlanCosts]:
        site = replace(planned.site, partition=cut(backbone, segments, "even", planned.site.image_shape))
        supervision = EndToEnd().supervise(site)
        graph = build_graph(segments, supervision, site.partition.modules(backbone))
        return make_plan(graph, "full", 0, recompute), planned.costs(site, supervision, parts, fused=fused)

    tried = {segments: made(segments, "once") for segments in range(1, len(backbone.blocks) + 1)}
    best = min(tried, key=lambda segments: predict(*tried[segments]).step_bytes)
    return made(1, "none"), best, tried[best]


def explain(planned: Planned, rows: int = 20) -> str:
    """What is alive at the plan's peak, largest first, as lines for a terminal.

    Args:
        rows: the most that are told one by one; what would show as 0.0 MiB is not.
    """
    fused = planned.settings is not None
    costs = planned.costs(planned.site, planned.supervision, planned.parts(fused=fused), fused=fused)
    prediction = predict(planned.plan, costs)
    whole = prediction.peak_bytes + planned.workspace
    lines = [f"The peak, {_mib(whole)}, is at {prediction.peak_task}. Alive then:", ""]
    alive = [(one.kind, one.name, one.bytes) for one in prediction.alive]
    if planned.workspace:
        alive = sorted([*alive, ("workspace", "libraries'", planned.workspace)], key=lambda row: -row[2])
    shown = [row for row in alive[:rows] if row[2] >= _SHOWN]
    lines += [f"{_mib(size):>14} {size / whole:6.1%}  {kind:<11} {name}" for kind, name, size in shown]
    if rest := alive[len(shown) :]:
        size = sum(row[2] for row in rest)
        lines.append(f"{_mib(size):>14} {size / whole:6.1%}  {len(rest)} smaller ones")
    return "\n".join(lines)


def as_text(figures: dict[str, Any], *, alive: bool = True) -> str:
    """The report as lines for a terminal; with `alive` also, by kind, what is alive at the peak."""
    size = "x".join(map(str, figures["input_shape"]))
    fused = ", fused blocks" if figures["fused"] else ""
    part = f" (a part; {figures['accumulate']} before one update)" if figures["accumulate"] > 1 else ""
    lines = [
        f"{figures['backbone']}, batch {figures['batch']}{part} of {size}, {figures['dtype']}{fused}; "
        f"live window {figures['window']} of {len(figures['modules'])} modules",
        "",
        f"{'module':>6}  {'blocks':<11} {'losses (reach)':<32} {'passes':<10} {'GFLOP':>8} {'heads':>7} "
        f"{'weights':>9} {'heads':>9} {'saved':>10}",
    ]
    for m, row in enumerate(figures["modules"]):
        losses = ", ".join(f"{loss['kind']} ({loss['reach']})" for loss in row["losses"]) or "none of its own"
        passes = "".join(task[0] for task in row["tasks"])
        lines.append(
            f"{m:>6}  {row['blocks']:<11} {losses:<32} {passes:<10} {row['flops'] / 1e9:8.2f} "
            f"{row['head_flops'] / 1e9:7.2f} {row['parameters']:>9,} {row['head_parameters']:>9,} "
            f"{_mib(row['saved_bytes']):>10}"
        )
    weights, timed = figures["weights"], figures["machine"] is not None
    lines += [
        "",
        "passes: F forward, R rebuild, H head and loss, P propagate, B backward, U update; saved: for the backward",
        f"weights: backbone {weights['backbone']:,}, heads and leap networks {weights['heads']:,}, "
        f"EMA twins {weights['twins']:,} (not trained)",
        "",
        f"{'per step':<42} {'GFLOP':>9} {'ratio':>7} {'peak activations':>17} {'ratio':>7} "
        f"{'peak, all':>14} {'ratio':>7}" + (f" {'img/s':>9}" if timed else ""),
    ]
    base = figures["plans"]["end-to-end"]
    for name, plan in figures["plans"].items():
        lines.append(
            f"{name:<42} {plan['flops'] / 1e9:9.2f} {plan['flops'] / base['flops']:7.2f} "
            f"{_mib(plan['peak_activation_bytes']):>17} "
            f"{plan['peak_activation_bytes'] / base['peak_activation_bytes']:7.2f} "
            f"{_mib(plan['peak_bytes']):>14} {plan['peak_bytes'] / base['peak_bytes']:7.2f}"
            + (f" {speed(plan['images_per_second']):>9}" if timed else "")
        )
    if figures["fused"]:
        lines.append(
            "End-to-end is in plain PyTorch here, the others have fused blocks; --method.name end_to_end has them, too."
        )
    if not alive:
        return "\n".join(lines)
    ours = figures["plans"]["this plan"]
    lines.append(f"The peak of this plan is at {ours['peak_task']}. Alive then:")
    shown = [f"{kind} {_mib(size)}" for kind, size in ours["at_peak"].items() if size > 0]
    lines += [", ".join(shown[:5]), ", ".join(shown[5:])]
    return "\n".join(lines)


def speed(rate: float) -> str:
    """Images per second with three digits that count, or more."""
    return f"{rate:,.{0 if rate >= 1000 else 1 if rate >= 10 else 2 if rate >= 1 else 3}f}"


def _mib(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"
