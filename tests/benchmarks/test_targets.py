"""The table of targets against rows made up for it."""

import re
from pathlib import Path

import pytest
from benchmarks.micro import cases

from benchmarks import executors, imagenet, targets


def micro(operator, contender, phase, shape, ms, share):
    names = {"operator": operator, "contender": contender, "phase": phase, "shape": shape}
    return {"benchmark": "micro", "ms": {"p50": ms}, "share": share, **names}


def step(case, **ratios):
    time = {name: {"median": value} for name, value in ratios.items()}
    figures = {"time_ratio": time, "peak_ratio": {"end-to-end": 0.3}}
    return {"benchmark": "imagenet", "case": case, "contender": "ours", **figures}


def turn(case, contender, eager, **more):
    ratio = {"time_ratio": {"eager": {"median": eager}}}
    return {"benchmark": "executors", "case": case, "contender": contender, **ratio, **more}


def found(rows):
    """{what: the last words of its line}."""
    lines = targets.table(rows).splitlines()[1:]
    return {line[:66].strip(): line[66:].split() for line in lines}


def test_nothing_was_measured():
    assert all(words[-2:] == ["not", "measured"] for words in found([]).values())


def test_figures_and_verdicts():
    rows = [
        step("resnet50-4-light", **{"end-to-end fused": 1.2}),
        step("resnet101-8-light", **{"two-path": 0.6, "end-to-end": 1.3}),
        step("resnet101-33-paper", **{"two-path": 0.25}),
        micro("batchnorm_act", "fused", "forward", "a", 1.0, 0.95),
        micro("batchnorm_act", "fused", "backward", "a", 1.0, 0.85),
        micro("batchnorm_act", "fused", "both", "a", 1.0, 0.5),
        micro("batchnorm_act", "reference", "forward", "a", 1.0, 0.4),
        micro("conv1x1", "fused", "forward", "a", 1.04, 0.9),
        micro("conv1x1", "plain", "forward", "a", 1.0, 0.9),
        micro("conv1x1", "fused", "forward", "b", 1.1, 0.9),
        micro("conv1x1", "plain", "forward", "b", 1.0, 0.9),
        micro("conv1x1", "fused", "forward", "c", 9.0, 0.9),
        turn("resnet32-15-light", "graph", 0.2),
        turn("resnet32-15-light", "streams", 0.1),
        turn("resnet32-8-paper", "graph", 0.4),
        turn("resnet50-8-light-streams", "streams", 1.0),
    ]
    lines = found(rows)
    assert lines["img/s of end-to-end, same kernels: ResNet-50, K = 4"][-2:] == ["0.83", "good"]
    assert lines["img/s of the two-path schedule, same kernels: ResNet-101, K = 8"][-2:] == ["1.67", "missed"]
    assert lines["ResNet-101, published leap networks, K = 33"][-2:] == ["4.00", "goal"]
    assert lines["peak memory of plain end-to-end: ResNet-101, K = 8"][-2:] == ["0.30", "goal"]
    assert lines["its time of plain end-to-end's, at most 1.25"][-2:] == ["1.30", "missed"]
    assert lines["BatchNorm and ReLU, least share of copy bandwidth"][-2:] == ["0.85", "good"]
    assert lines["1x1 convolution with its neighbours, worst time of plain"][-2:] == ["1.10", "good"]
    assert lines["CIFAR nets, CUDA graph against eager"][-2:] == ["2.50", "good"]
    assert lines["img/s with streams of those with one"][-2:] == ["1.00", "missed"]
    assert lines["ResNet-50, K = 8"][-2:] == ["not", "measured"]


def test_a_graph_that_could_not_be_captured_is_not_measured():
    rows = [turn("resnet32-15-light", "graph", 0.2, obstacle="no"), turn("resnet32-8-paper", "graph", 0.2, obstacle="")]
    for count, words in ((1, ["not", "measured"]), (2, ["5.00", "goal"])):
        assert found(rows[:count])["CIFAR nets, CUDA graph against eager"][-2:] == words


@pytest.mark.parametrize("net", [*imagenet.NETS, *imagenet.MORE], ids=lambda net: net.name)
def test_every_case_of_the_round_serves_a_target(net):
    rivals = dict.fromkeys(net.rivals, 1.0)
    rows = [step(net.name, **rivals)]
    assert any(target.find(rows) is not None for target in targets.TARGETS)


@pytest.mark.parametrize("contest", executors.CONTESTS, ids=lambda contest: contest.name)
def test_every_contest_of_executors_serves_a_target(contest):
    rows = [turn(contest.name, way, 0.5) for way in contest.executors]
    assert any(target.find(rows) is not None for target in targets.TARGETS)


def test_targets_name_what_the_round_measures():
    source = Path(targets.__file__).read_text(encoding="utf-8")
    named = set(re.findall(r'"(resnet[\w-]+)"', source))
    assert named <= {case.name for case in (*imagenet.NETS, *imagenet.MORE, *executors.CONTESTS)}
    assert {"batchnorm_act", "conv1x1"} <= {case.operator for case in cases.CASES}
    assert all("plain" in case.others for case in cases.CASES if case.operator == "conv1x1")
