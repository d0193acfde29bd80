"""The step plan in words and figures: what `mlaan plan` prints."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from mlaan.learning import EndToEnd, Partition, Supervision, cut
from mlaan.models import Backbone
from mlaan.models.cost import ModuleCost
from mlaan.plan.graph import Kind, build_graph
from mlaan.plan.predict import PlanCosts, Prediction, combine, measure_parts, predict
from mlaan.plan.schedule import StepPlan, make_plan


@dataclass(frozen=True)
class Site:
    """Everything a plan is about."""

    backbone: Backbone
    partition: Partition
    supervision: Supervision
    plan: StepPlan
    input_shape: Sequence[int]
    batch: int


def report(site: Site) -> dict[str, Any]:
    """Figures per module and in all, beside end-to-end and checkpointed end-to-end, as plain data.

    Bytes are bytes, FLOPs count multiply and add as two, both for one step on one batch in float32.
    """
    parts = measure_parts(site.backbone, site.input_shape, site.batch, torch.float32)
    size = 4 * site.batch * math.prod(site.input_shape)
    costs = combine(parts, site.partition, site.supervision, size, torch.float32)
    ours = predict(site.plan, costs)
    plain, segments, checkpointed = _end_to_end(site, parts, size)
    return {
        "backbone": site.backbone.name,
        "batch": site.batch,
        "input_shape": list(site.input_shape),
        "window": site.plan.window,
        "modules": [_module(site, costs, m) for m in range(len(site.partition))],
        "weights": _weights(site),
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


def _module(site: Site, costs: PlanCosts, m: int) -> dict[str, Any]:
    a, b = site.partition.spans[m]
    steps = [step.task for step in site.plan.steps if step.task.module == m]
    heads = {id(loss.head): loss.head for loss in site.supervision.losses if loss.module == m}
    heads.pop(id(site.backbone.classifier), None)
    return {
        "blocks": f"{site.backbone.blocks[a].label}-{site.backbone.blocks[b - 1].label}",
        "tasks": [str(task) for task in steps],
        "losses": [
            {"kind": loss.kind, "reach": loss.reach, "weight": loss.weight}
            for loss in site.supervision.losses
            if loss.module == m
        ],
        "flops": sum(costs.flops(site.plan, task) for task in steps),
        "head_flops": sum(costs.flops(site.plan, task) for task in steps if task.kind is Kind.HEAD),
        "parameters": costs.modules[m].parameters,
        "head_parameters": _count(heads.values(), trained=True),
        "saved_bytes": costs.modules[m].saved_bytes + costs.modules[m].output_bytes,
        "rebuilds": site.plan.rebuilds(m),
    }


def _weights(site: Site) -> dict[str, int]:
    heads = {id(loss.head): loss.head for loss in site.supervision.losses}
    heads.pop(id(site.backbone.classifier), None)
    return {
        "backbone": sum(p.numel() for p in site.backbone.net.parameters()),
        "heads": _count(heads.values(), trained=True),
        "twins": _count(heads.values(), trained=False),
    }


def _count(modules: Any, *, trained: bool) -> int:
    return sum(p.numel() for p in nn.ModuleList(modules).parameters() if p.requires_grad == trained)


def _end_to_end(site: Site, parts: Sequence[ModuleCost], input_bytes: int) -> tuple[Prediction, int, Prediction]:
    """End-to-end training of the same backbone: as it is, and with the segment count of the lowest peak."""
    blocks = len(site.backbone.blocks)
    shapes = site.backbone.block_shapes(site.input_shape)

    def run(segments: int, recompute: str) -> Prediction:
        partition = cut(site.backbone, segments, "even", site.input_shape)
        supervision = EndToEnd().supervise(site.backbone, partition, shapes)
        graph = build_graph(segments, supervision, partition.modules(site.backbone))
        costs = combine(parts, partition, supervision, input_bytes, torch.float32)
        return predict(make_plan(graph, "full", 0, recompute), costs)

    tried = {segments: run(segments, "once") for segments in range(1, min(blocks, 16) + 1)}
    best = min(tried, key=lambda segments: tried[segments].peak_bytes)
    return run(1, "none"), best, tried[best]


def as_text(figures: dict[str, Any]) -> str:
    """The report as lines for a terminal."""
    size = "x".join(map(str, figures["input_shape"]))
    lines = [
        f"{figures['backbone']}, batch {figures['batch']} of {size}, float32; live window {figures['window']} of "
        f"{len(figures['modules'])} modules",
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
