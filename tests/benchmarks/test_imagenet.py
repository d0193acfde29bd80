"""The big networks' steps on a tiny one: rows, a gate that shuts, and what becomes of time and memory that run out."""

import json

import pytest
import torch
from benchmarks.imagenet import ALL, Net

from benchmarks import imagenet, running
from exact.compare import tiny_imagenet_style
from mlaan.compare import contenders
from mlaan.errors import StepMemoryError

TINY = Net("tiny-light", tiny_imagenet_style, 4, "light", "flops", 4, ALL, size=16, classes=10)
PAPER = Net("tiny-paper", tiny_imagenet_style, 8, "paper", "even", 2, ("end-to-end fused", "two-path"), 16, 10)
CPU = ["--device", "cpu", "--rounds", "1"]


@pytest.fixture(autouse=True)
def few(monkeypatch):
    """As few steps as show that every form runs; test_steps.py has peaks, which take long to find on a CPU."""
    for where in (imagenet, contenders):
        monkeypatch.setattr(where, "step_peak", lambda made, batch: made.step(*batch) and 100)
    for name, value in {"SEGMENTS_TRIED": (3,), "BATCHES": 1, "WARMUP": 0}.items():
        monkeypatch.setattr(imagenet, name, value)


def test_rows_of_every_contender(tmp_path, capsys):
    file = tmp_path / "rows.json"
    assert imagenet.main([*CPU, "--json", str(file), "--commit", "abc"], [TINY, PAPER]) == 0, capsys.readouterr().out
    rows = json.loads(file.read_text())
    assert [row["contender"] for row in rows if row["case"] == TINY.name] == ["ours", *ALL]
    assert [row["contender"] for row in rows if row["case"] == PAPER.name] == ["ours", *PAPER.rivals]
    for row in rows:
        assert row["time_ratio"][row["contender"]]["median"] == row["peak_ratio"][row["contender"]] == 1
        assert (row["dtype"], row["commit"]) == ("bfloat16 autocast", "abc")
        assert row["images_per_second"] > 0


def test_other_losses_get_no_row(tmp_path, monkeypatch, capsys):
    two_path = imagenet._two_path

    def planted(engine, method):
        judge = two_path(engine, method)
        for weight in judge.modules[1].parameters():
            weight.data.mul_(3)
        return judge

    monkeypatch.setattr(imagenet, "_two_path", planted)
    file = tmp_path / "rows.json"
    assert imagenet.main([*CPU, "--json", str(file)], [TINY]) == 1
    assert "refused: WrongLossesError: tiny-light: the loss " in capsys.readouterr().out
    assert not file.exists()


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("too much"), StepMemoryError("Forward(0)", 0)], ids=repr)
def test_a_batch_that_does_not_fit_is_halved(error, monkeypatch):
    tried = []

    def measure(net, batch, rounds, device):
        tried.append(batch)
        if batch > 60:
            raise error
        return [batch]

    monkeypatch.setattr(imagenet, "measure", measure)
    assert imagenet.measure_what_fits(TINY, 256, 1, torch.device("cpu")) == [32]
    assert tried == [256, 128, 64, 32]


def test_when_the_time_is_up_what_was_measured_stays(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        imagenet, "measure", lambda net, *_: [{"case": net.name, "contender": "", "images_per_second": 1}]
    )
    clock = iter([0.0, 0.0, 10.0])
    monkeypatch.setattr(running.time, "monotonic", lambda: next(clock))
    file = tmp_path / "rows.json"
    assert imagenet.main([*CPU, "--budget", "5", "--json", str(file)], [TINY, PAPER]) == 1
    assert [row["case"] for row in json.loads(file.read_text())] == [TINY.name]
    assert "tiny-paper: not measured, the time is up" in capsys.readouterr().out


def test_more_takes_the_cases_that_the_round_leaves_out_and_names_choose_among_all(monkeypatch, capsys):
    monkeypatch.setattr(
        imagenet, "measure", lambda net, *_: [{"case": net.name, "contender": "", "images_per_second": 1}]
    )
    for words, seen in (([], "light"), (["--more"], "paper"), (["--cases", PAPER.name], "paper")):
        assert imagenet.main([*CPU, *words], [TINY], [PAPER]) == 0
        assert capsys.readouterr().out == f"tiny-{seen} : 1 img/s\n"


@pytest.mark.parametrize("net", [*imagenet.NETS, *imagenet.MORE], ids=lambda net: net.name)
def test_the_rounds_cases_are_those_of_the_targets(net):
    assert net.size == 224
    assert net.classes == 1000
    backbone, modules, preset, *_ = net.name.split("-")
    assert (backbone, modules, preset) == (net.backbone.args[0], str(net.modules), net.preset)
