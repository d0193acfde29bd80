"""What a plan is said to cost is what its step costs."""

import pytest
import torch
from benchmarks.measure import flops, peak_memory

from mlaan import DGL, HPFF, MAN, MLAAN, AugLocal, BackLink, EndToEnd, Engine, InfoPro, PredSim
from mlaan.models import CifarResNet
from mlaan.models.cost import measure
from mlaan.plan.predict import combine, measure_parts, predict
from mlaan.plan.report import as_text

METHODS = [EndToEnd(), DGL(), MLAAN(preset="light"), MLAAN(), MLAAN(reach=3), MLAAN(preset="authors")]
OTHERS = [MLAAN(preset="fast"), MLAAN(leap="live"), AugLocal(), MAN(), HPFF(), BackLink(), PredSim(), InfoPro()]
MEMORY = [("lean", "none"), ("lean", "each"), ("full", "none"), ("full", "once")]


def made(method, schedule, recompute, samples, size):
    torch.manual_seed(0)
    known = (0.5,) * 3, (0.25,) * 3
    engine = Engine(
        CifarResNet(20),
        method,
        9,
        input_shape=(3, size, size),
        schedule=schedule,
        recompute=recompute,
        normalisation=known,
    )
    parts = measure_parts(engine.backbone, (3, size, size), samples, torch.float32)
    costs = combine(parts, engine.partition, engine.supervision, (samples, 3, size, size), torch.float32)
    batch = torch.randn(samples, 3, size, size), torch.randint(10, (samples,))
    engine.step(*batch)
    return engine, predict(engine.plan, costs), batch


CASES = [(method, *memory) for method in METHODS for memory in MEMORY]
CASES += [(method, *MEMORY[number % len(MEMORY)]) for number, method in enumerate(OTHERS)]


@pytest.mark.parametrize(("method", "schedule", "recompute"), CASES, ids=repr)
def test_flops_are_those_of_a_real_step(method, schedule, recompute):
    engine, prediction, batch = made(method, schedule, recompute, 4, 16)
    assert prediction.flops == flops(lambda: engine.step(*batch))


@pytest.mark.parametrize("method", METHODS[:4], ids=repr)
@pytest.mark.parametrize("schedule", ["lean", "full"])
def test_peak_is_near_the_allocators(method, schedule):
    """Gradients of weights and workspace, which the prediction leaves out, are the difference."""
    engine, prediction, batch = made(method, schedule, "none", 16, 32)
    measured = peak_memory(lambda: engine.step(*batch), torch.device("cpu"))
    assert prediction.peak_bytes == pytest.approx(measured, rel=0.25)


def test_the_report_names_every_module_and_both_rivals():
    engine = Engine(CifarResNet(20), MLAAN(), 4)
    figures = engine.describe(8)
    assert [row["blocks"] for row in figures["modules"]] == ["1.0-1.1", "1.2-2.0", "2.1-2.2", "3.0-3.2"]
    assert sum(row["parameters"] for row in figures["modules"]) + 650 == figures["weights"]["backbone"]
    assert figures["modules"][1]["tasks"][0] == "Forward(1)"
    text = as_text(figures)
    assert "end-to-end" in text
    assert "checkpointed segments" in text


def test_a_grouped_convolution_costs_the_same_each_way():
    """torch's own count of its weight gradient is `groups` times too high."""
    cost = measure(torch.nn.Conv2d(64, 64, 3, padding=1, groups=32, bias=False), (2, 64, 6, 6))
    assert cost.forward_flops == 2 * (2 * 6 * 6) * 64 * (64 // 32) * 9
    assert (cost.input_flops, cost.weight_flops, cost.backward_flops) == (
        cost.forward_flops,
        cost.forward_flops,
        2 * cost.forward_flops,
    )
