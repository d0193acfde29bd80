"""Predictions of targets: the figures of `mlaan plan`, read as a round's rows are."""

import json
import shlex

import pytest
from benchmarks.executors import Contest
from benchmarks.imagenet import Net

from benchmarks import predictions, targets
from mlaan.cli import main
from mlaan.models import BACKBONES
from mlaan.plan.machine import MACHINES
from trainer.tiny import one_thread

__all__ = ["one_thread"]
H100 = MACHINES["h100"]
RIVALS = ("end-to-end", "end-to-end fused", "checkpointed", "compiled")
NET = Net("resnet20-4-light", lambda: BACKBONES["resnet20"](10, 3), 4, "light", "flops", 512, RIVALS, 32, 10)
CONTEST = Contest("resnet20-4-paper", NET.backbone, 4, "paper", "even", 8, ("eager", "streams", "graph"))


@pytest.fixture(autouse=True)
def few(monkeypatch):
    monkeypatch.setattr(predictions, "SEGMENTS_TRIED", (3,))


def test_the_table_and_the_commands_that_give_its_figures(monkeypatch, capsys):
    monkeypatch.setattr(
        predictions, "TARGETS", [targets.Target("  small", 0.5, 0.9, targets.images(NET.name, "end-to-end"))]
    )
    assert predictions.main([], [NET]) == 0
    printed = capsys.readouterr().out
    plans, commands = {}, []
    for command in (shlex.split(line) for line in printed.splitlines() if line.startswith("mlaan plan")):
        commands.append(" ".join(command))
        assert main([*command[1:], "--json"]) == 0
        plans[len(plans)] = json.loads(capsys.readouterr().out)["plans"]["this plan"]
    plain, fused, checkpointed, ours = plans.values()
    kinds = ["none --train.kernels reference", "fused --train.kernels triton", "once --train.kernels triton", "fused"]
    for kind, command in zip(kinds, commands, strict=True):
        assert command.endswith(f"--memory.recompute {kind} --machine h100")
    ratio = ours["seconds"] / plain["seconds"]
    assert f"| … small | 0.50 | 0.90 | {1 / ratio:.2f} | not yet |" in printed
    for name, rival in (("end-to-end", plain), ("end-to-end fused", fused), ("checkpointed", checkpointed)):
        assert f"time / {name} {ours['seconds'] / rival['seconds']:.2f}" in printed
        assert f"peak / {name} {ours['step_bytes'] / rival['step_bytes']:.2f}" in printed
    assert plain["step_bytes"] > fused["step_bytes"] > checkpointed["step_bytes"]


def test_a_net_beside_no_step_plan_has_no_row():
    assert predictions.net_rows(Net("resnet20-4-light", NET.backbone, 4, "light", "even", 8, ("compiled",)), H100) == []


def test_a_small_nets_graph_is_predicted_to_gain_most():
    rows = {row["contender"]: row for row in predictions.contest_rows(CONTEST, H100)}
    ratio = {way: row["time_ratio"]["eager"]["median"] for way, row in rows.items()}
    assert ratio["graph"] < 0.5 < ratio["streams"] <= 1
    assert (rows["streams"]["overlap"] > 0) == (rows["streams"]["lanes"] > 1) == (ratio["streams"] < 1)
