"""What a plan is said to cost is what its step costs."""

import pytest
import torch
from benchmarks.measure import flops

from mlaan import DGL, HPFF, MAN, MLAAN, AugLocal, BackLink, EndToEnd, Engine, InfoPro, PredSim
from mlaan.learning import Site, cut
from mlaan.models import CifarResNet, build
from mlaan.models import measure as measuring
from mlaan.models.measure import measure
from mlaan.models.passes import Autograd
from mlaan.plan import build_graph, make_plan
from mlaan.plan.machine import MACHINES
from mlaan.plan.predict import combine, measure_parts, predict
from mlaan.plan.report import Planned, as_text, explain, report

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


def test_the_report_names_every_module_and_both_rivals():
    engine = Engine(CifarResNet(20), MLAAN(), 4)
    figures = engine.describe(8)
    assert [row["blocks"] for row in figures["modules"]] == ["1.0-1.1", "1.2-2.0", "2.1-2.2", "3.0-3.2"]
    assert sum(row["parameters"] for row in figures["modules"]) + 650 == figures["weights"]["backbone"]
    assert figures["modules"][1]["tasks"][0] == "Forward(1)"
    text = as_text(figures)
    assert "end-to-end" in text
    assert "checkpointed segments" in text
    assert figures["machine"] is None
    assert figures["plans"]["this plan"]["seconds"] is None


def test_with_a_machine_the_report_has_times_and_workspace():
    engine = Engine(CifarResNet(20), MLAAN(), 4)
    figures, text = with_machine(engine)
    ours = figures["plans"]["this plan"]
    assert ours["images_per_second"] == pytest.approx(8 / ours["seconds"])
    assert sum(step["seconds"] for step in figures["steps"]) == pytest.approx(ours["seconds"])
    assert sum(step["flops"] for step in figures["steps"]) == ours["flops"]
    assert sum(ours["at_peak"].values()) == ours["peak_bytes"]
    assert ours["at_peak"]["workspace"] == MACHINES["h100"].workspace
    assert "img/s" in text


def with_machine(engine):
    planned = Planned(engine.site, engine.supervision, engine.plan, 8, machine=MACHINES["h100"])
    figures = report(planned)
    return figures, as_text(figures)


def test_the_peak_is_explained_largest_first():
    engine = Engine(CifarResNet(20), MLAAN(), 4)
    lines = explain(Planned(engine.site, engine.supervision, engine.plan, 64), rows=5).splitlines()
    assert "is at" in lines[0]
    sizes = [float(line.split()[0].replace(",", "")) for line in lines[2:7]]
    assert sizes == sorted(sizes, reverse=True)
    assert "smaller ones" in lines[7]


def test_a_search_over_plans_is_quick(monkeypatch):
    """Of a deep network each kind of block is run twice on the meta device, and then none for any plan of it."""
    runs, passes = [], Autograd.passes
    monkeypatch.setattr(Autograd, "passes", lambda self: runs.append(self.shape) or passes(self))
    monkeypatch.setattr(measuring, "_MEASURED", {})
    with torch.device("meta"):
        net = build("resnet152", 1000)
    parts = measure_parts(net, (3, 224, 224), 200, torch.bfloat16, straight=True)
    kinds = 1 + 4 * 2
    assert len(parts) == 1 + 50
    assert len(runs) == 2 * kinds
    partition = cut(net, 50, "even", (3, 224, 224))
    site = Site(net, partition, net.block_shapes((3, 224, 224)), (3, 224, 224), None)
    supervision = MLAAN(preset="light").supervise(site)
    plan = make_plan(build_graph(50, supervision, partition.modules(net)), "full")
    costs = combine(parts, partition, supervision, (200, 3, 224, 224), torch.bfloat16, straight=True)
    measured = len(runs)
    predict(plan, costs)
    assert len(runs) == measured


def test_a_grouped_convolution_costs_the_same_each_way():
    """torch's own count of its weight gradient is `groups` times too high."""
    cost = measure(torch.nn.Conv2d(64, 64, 3, padding=1, groups=32, bias=False), (2, 64, 6, 6))
    assert cost.forward_flops == 2 * (2 * 6 * 6) * 64 * (64 // 32) * 9
    assert (cost.input_flops, cost.weight_flops, cost.backward_flops) == (
        cost.forward_flops,
        cost.forward_flops,
        2 * cost.forward_flops,
    )
