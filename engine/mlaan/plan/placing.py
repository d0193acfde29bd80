"""Where the steps of a plan run on a given device."""

from collections.abc import Sequence

import torch

from mlaan.learning import Site, Supervision
from mlaan.plan.costs import combine, measure_parts
from mlaan.plan.duration import task_time
from mlaan.plan.lanes import LanePlan, TaskTime, choose_lanes
from mlaan.plan.machine import MACHINES, Machine
from mlaan.plan.schedule import StepPlan
from mlaan_kernels.blocks import Settings


def machine_like(device: torch.device) -> Machine:
    """The machine among `MACHINES` that a device is, by its name, or that comes near enough to place tasks by."""
    if device.type != "cuda":
        return MACHINES["cpu"]
    name = torch.cuda.get_device_name(device).lower()
    known = {"h100": "h100", "h200": "h100", "a100": "a100", "4090": "rtx4090"}
    return MACHINES[next((machine for word, machine in known.items() if word in name), "a100")]


def place(
    site: Site,
    supervision: Supervision,
    plan: StepPlan,
    images: Sequence[int],
    dtype: torch.dtype,
    settings: Settings | None,
    machine: Machine,
    precision: str | None = None,
) -> LanePlan:
    """The lanes of a plan on a machine, for images (N, C, H, W) and activations of `dtype`; see `task_time`."""
    parts = measure_parts(site.backbone, images[1:], images[0], dtype, settings, device=machine.kind)
    fused = settings is not None
    costs = combine(parts, site.partition, supervision, images, dtype, fused=fused, device=machine.kind)
    times: list[TaskTime] = [task_time(plan, costs, step, machine, precision) for step in plan.steps]
    return choose_lanes(plan, times)
