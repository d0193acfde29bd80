"""The step plan in words and figures: what `mlaan plan` prints."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from mlaan.learning import EndToEnd, Site, Supervision, cut
from mlaan.models.cost import ModuleCost
from mlaan.plan.graph import Kind, build_graph, head_homes
from mlaan.plan.predict import PlanCosts, Prediction, combine, measure_parts, predict
from mlaan.plan.schedule import StepPlan, make_plan
from mlaan_kernels.blocks import Settings


@dataclass(frozen=True)
class Planned:
    """Everything a plan is about."""

    site: Site
    supervision: Supervision
    plan: StepPlan
    batch: int
    dtype: torch.dtype = torch.float32
    settings: Settings | None = None


def report(planned: Planned) -> dict[str, Any]:
    """Figures per module and in all, beside end-to-end and checkpointed end-to-end, as plain data.

    Bytes are bytes, FLOPs count multiply and add as two, both for one step on one batch with activations in the plan's
    dtype. Where fused kernels run the plan, they run the checkpointed rival too; plain end-to-end keeps what PyTorch
    keeps.
    """
    site, dtype, batch = planned.site, planned.dtype, planned.batch
    eager = measure_parts(site.backbone, site.image_shape, batch, dtype)
    parts = eager
    if planned.settings is not None:
        parts = measure_parts(site.backbone, site.image_shape, batch, dtype, planned.settings)
    images = (batch, *site.image_shape)
    fused = planned.settings is not None
    costs = combine(parts, site.partition, planned.supervision, images, dtype, fused=fused)
    ours = predict(planned.plan, costs)
    plain, _, _ = _end_to_end(site, eager, images, dtype, fused=False)
    _, segments, checkpointed = _end_to_end(site, parts, images, dtype, fused=fused)
    return {
        "backbone": site.backbone.name,
        "batch": batch,
        "dtype": str(dtype).removeprefix("torch."),
        "fused": fused,
        "input_shape": list(site.image_shape),
        "window": planned.plan.window,
        "modules": [_module(planned, costs, m) for m in range(site.modules)],
        "weights": _weights(planned),
        "plans": {
            "this plan": _figures(ours),
            "end-to-end": _figures(plain),
            f"end-to-end, {segments} checkpointed segments": _figures(checkpointed),
        },
    }


def _figures(prediction: Prediction) -> dict[str, Any]:
    return {
        "flops": prediction.flops,
        "peak_activation_bytes": prediction.peak_bytes,
        "peak_task": str(prediction.peak_task),
    }


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
    heads = {id(loss.head): loss.head for loss in planned.supervision.losses}
    heads.pop(id(planned.site.backbone.classifier), None)
    return heads


def _count(modules: Any, *, trained: bool) -> int:
    return sum(p.numel() for p in nn.ModuleList(modules).parameters() if p.requires_grad == trained)


def _end_to_end(
    site: Site, parts: Sequence[ModuleCost], images: Sequence[int], dtype: torch.dtype, *, fused: bool
) -> tuple[Prediction, int, Prediction]:
    """End-to-end training of the same backbone: as it is, and with the segment count of the lowest peak."""

    def run(segments: int, recompute: str) -> Prediction:
        partition = cut(site.backbone, segments, "even", site.image_shape)
        supervision = EndToEnd().supervise(replace(site, partition=partition))
        graph = build_graph(segments, supervision, partition.modules(site.backbone))
        costs = combine(parts, partition, supervision, images, dtype, fused=fused)
        return predict(make_plan(graph, "full", 0, recompute), costs)

    tried = {segments: run(segments, "once") for segments in range(1, len(site.backbone.blocks) + 1)}
    best = min(tried, key=lambda segments: tried[segments].peak_bytes)
    return run(1, "none"), best, tried[best]


def as_text(figures: dict[str, Any]) -> str:
    """The report as lines for a terminal."""
    size = "x".join(map(str, figures["input_shape"]))
    fused = ", fused blocks" if figures["fused"] else ""
    lines = [
        f"{figures['backbone']}, batch {figures['batch']} of {size}, {figures['dtype']}{fused}; "
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
    weights = figures["weights"]
    lines += [
        "",
        "passes: F forward, R rebuild, H head and loss, P propagate, B backward, U update; saved: for the backward",
        f"weights: backbone {weights['backbone']:,}, heads and leap networks {weights['heads']:,}, "
        f"EMA twins {weights['twins']:,} (not trained)",
        "",
        f"{'per step':<42} {'GFLOP':>9} {'ratio':>7} {'peak activations':>17} {'ratio':>7}",
    ]
    base = figures["plans"]["end-to-end"]
    for name, plan in figures["plans"].items():
        lines.append(
            f"{name:<42} {plan['flops'] / 1e9:9.2f} {plan['flops'] / base['flops']:7.2f} "
            f"{_mib(plan['peak_activation_bytes']):>17} "
            f"{plan['peak_activation_bytes'] / base['peak_activation_bytes']:7.2f}"
        )
    lines.append(f"The peak of this plan is at {figures['plans']['this plan']['peak_task']}.")
    return "\n".join(lines)


def _mib(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"
