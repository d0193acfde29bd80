"""The times that a plan is said to take rank real steps as a clock does."""

import statistics
import time
from typing import Any, cast

import pytest
import torch
from scipy.stats import kendalltau

from mlaan import DGL, MLAAN, EndToEnd, Engine
from mlaan.models import build
from mlaan.plan import Kind
from mlaan.plan.duration import step_seconds, task_time
from mlaan.plan.machine import MACHINES, measure_machine
from mlaan.plan.predict import combine, measure_parts

LIGHT, PAPER = MLAAN(preset="light"), MLAAN()
ONCE = {"schedule": "full", "recompute": "once"}
EACH = {"schedule": "full", "recompute": "each"}
# network, side of the images, method, modules, batch, memory: steps from hundredths of a second to over one
POINTS = [
    ("resnet20", 32, EndToEnd(), 1, 2, {}),
    ("resnet20", 32, LIGHT, 9, 4, {}),
    ("resnet20", 32, EndToEnd(), 1, 16, {}),
    ("resnet18", 64, EndToEnd(), 1, 6, {}),
    ("resnet20", 32, LIGHT, 4, 32, EACH),
    ("resnet18", 64, DGL(), 4, 16, {}),
    ("resnet20", 32, EndToEnd(), 4, 64, ONCE),
    ("resnet18", 64, LIGHT, 8, 32, {"schedule": "windowed", "window": 3}),
    ("resnet20", 32, PAPER, 8, 32, ONCE),
    ("resnet50", 64, DGL(), 4, 16, {}),
    ("resnet50", 64, LIGHT, 8, 16, EACH),
    ("resnet50", 64, PAPER, 2, 16, {}),
]


def made(name, size, method, modules, samples, memory):
    """An engine, a batch for it, and what its plan costs."""
    torch.manual_seed(0)
    shape = (3, size, size)
    engine = Engine(build(name, 10), method, modules, input_shape=shape, **memory)
    parts = measure_parts(engine.backbone, shape, samples, torch.float32, device="cpu")
    costs = combine(parts, engine.partition, engine.supervision, (samples, *shape), torch.float32, device="cpu")
    return engine, (torch.randn(samples, *shape), torch.randint(10, (samples,))), costs


@pytest.mark.slow
def test_predicted_times_rank_measured_steps():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        machine = measure_machine(torch.device("cpu"), seconds=2)
        cases = [made(*point) for point in POINTS]
        predicted = [step_seconds(engine.plan, costs, machine) for engine, _, costs in cases]
        taken: list[list[float]] = [[] for _ in cases]
        for _ in range(4):
            for (engine, batch, _), seconds in zip(cases, taken, strict=True):
                start = time.perf_counter()
                engine.step(*batch)
                seconds.append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(threads)
    measured = [statistics.median(seconds[1:]) for seconds in taken]
    rows = [f"{m:.3f} s, predicted {p:.3f} s: {point}" for m, p, point in zip(measured, predicted, POINTS, strict=True)]
    tau = cast(Any, kendalltau(measured, predicted)).statistic
    assert tau >= 0.8, "\n".join(rows)


def test_a_step_is_the_sum_of_its_tasks_and_recomputing_takes_longer():
    plain, _, costs = made("resnet20", 32, LIGHT, 4, 16, {})
    again, _, _ = made("resnet20", 32, LIGHT, 4, 16, EACH)
    machine = MACHINES["h100"]
    times = [task_time(plain.plan, costs, step, machine) for step in plain.plan.steps]
    assert all(one.seconds > 0 and 0 < one.share <= 1 for one in times)
    assert step_seconds(plain.plan, costs, machine) == pytest.approx(sum(one.seconds for one in times))
    assert step_seconds(again.plan, costs, machine) > step_seconds(plain.plan, costs, machine)


def test_large_batches_fill_a_gpu_and_small_ones_wait_for_launches():
    machine = MACHINES["h100"]
    engine, _, small = made("resnet20", 32, LIGHT, 4, 2, {})
    parts = measure_parts(engine.backbone, (3, 32, 32), 8192, torch.float32, device="cuda")
    large = combine(parts, engine.partition, engine.supervision, (8192, 3, 32, 32), torch.float32)
    forward = next(step for step in engine.plan.steps if step.task.kind is Kind.FORWARD)
    assert task_time(engine.plan, small, forward, machine).share < 0.2
    assert task_time(engine.plan, large, forward, machine).share > 0.95


def test_a_lower_precision_is_faster_where_flops_decide():
    engine, _, costs = made("resnet50", 64, LIGHT, 4, 16, {})
    seconds = [step_seconds(engine.plan, costs, MACHINES["h100"], p) for p in ("float32", "tf32", "bfloat16")]
    assert seconds[0] > seconds[1] >= seconds[2]
