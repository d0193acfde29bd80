"""`mlaan plan` from a person's side: machines, timelines, and settings that fit into a given memory."""

import json
import time
from unittest import mock

import pytest

from mlaan.build import with_kernels
from mlaan.cli import main
from mlaan.cli.fitting import Found, verdict
from mlaan.cli.machines import choose_machine
from mlaan.cli.settings import load_config
from mlaan.plan.candidates import Choice, Estimate
from mlaan.plan.machine import MACHINES, Machine
from mlaan.plan.rivals import Rival
from trainer.tiny import config, one_thread

__all__ = ["one_thread"]
SMALL = ["--data.name", "synthetic", "--data.size", "8", "--data.images", "64", "--method.preset", "light"]
ROW = ("modules", "cuts", "schedule", "window", "recompute", "batch")


@pytest.fixture(autouse=True)
def no_profile(tmp_path, monkeypatch):
    """The figures of the machine that runs the tests are not there."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def plan(capsys, *words):
    assert main(["plan", *SMALL, *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def settings_of(made):
    partition, memory = made.partition, made.memory
    cuts = partition.cuts if isinstance(partition.cuts, str) else list(partition.cuts)
    return partition.modules, cuts, memory.schedule, memory.window, memory.recompute, made.data.batch


def test_the_best_plan_is_written_and_its_run_starts(tmp_path, capsys):
    out = tmp_path / "my plan.toml"
    assert main(["plan", *SMALL, "--train.epochs", "1", "--memory", "8MiB", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert f"mlaan train --config '{out}'" in said
    assert "Times are those of this CPU (figures of" in said
    with mock.patch("mlaan.report.draw"):
        assert main(["train", "--config", str(out), "--run.folder", str(tmp_path / "run")]) == 0
    capsys.readouterr()
    figures = plan(capsys, "--memory", "8MiB", "--out", str(out))
    best = figures["plans"][0]
    first = f"# made by `mlaan plan --memory 8MiB` for this CPU: predicted peak {best['peak_bytes'] / 2**20:.1f} MiB, "
    assert out.read_text().startswith(first)
    assert settings_of(load_config(out, [])) == tuple(figures["plans"][0][key] for key in ROW)
    assert main(["plan", "--config", str(out), "--json"]) == 0
    again = json.loads(capsys.readouterr().out)["plans"]["this plan"]
    assert again["peak_bytes"] == figures["plans"][0]["peak_bytes"] <= 8 * 2**20


def test_what_was_set_in_a_file_or_by_a_word_stays(tmp_path, capsys):
    base, file = tmp_path / "base.toml", tmp_path / "file.toml"
    base.write_text("[memory]\nrecompute = 'once'\n[partition]\nmodules = 3\n")
    file.write_text("base = 'base.toml'\n[data]\nname = 'synthetic'\nbatch = 24\n")
    words = ["--config", str(file), "--partition.cuts", "even", "--memory.schedule", "full"]
    for one in plan(capsys, *words, "--memory", "1GiB", "--out", str(tmp_path / "out.toml"))["plans"]:
        assert tuple(one[key] for key in ROW) == (3, "even", "full", 0, "once", 24)


def test_a_batch_that_was_not_set_shrinks_until_it_fits_and_one_that_was_does_not(tmp_path, capsys):
    out = ["--memory", "5MiB", "--out", str(tmp_path / "plan.toml"), "--data.size", "16", "--partition.modules", "3"]
    figures = plan(capsys, *out)
    assert figures["plans"][0]["batch"] < figures["batch"] == 64
    assert all(one["peak_bytes"] <= 5 * 2**20 for one in figures["plans"])
    assert main(["plan", *SMALL, *out, "--data.batch", "64"]) == 2
    said = capsys.readouterr().err
    assert "no plan fits into 5.0 MiB: the least found is" in said
    assert "set a smaller data.batch" in said


def test_rivals_that_win_are_named(tmp_path, capsys):
    """A small net with leap networks takes more of everything than end-to-end training."""
    words = ["--method.preset", "paper", "--memory", "1GiB", "--out", str(tmp_path / "plan.toml")]
    figures = plan(capsys, *words)
    assert figures["rivals"][0]["name"] == "end-to-end"
    assert figures["rivals"][0]["fits"]
    assert "End-to-end: needs less and is faster than the best plan." in figures["verdict"]


def test_a_verdict_goes_by_speed_memory_and_batch():
    def one(batch, peak, seconds):
        return Estimate(Choice(1, "even", "full", 0, "none", batch), peak, seconds, 1)

    def said(batch, peak, seconds):
        beside = [Rival("end-to-end", one(batch, peak, seconds))]
        return list(verdict(Found(config(), [one(64, 100, 1.0)], beside, 200, 64, choose_machine("cpu", config()))))

    assert said(64, 50, 0.5) == ["End-to-end: needs less and is faster than the best plan."]
    assert said(64, 150, 0.5) == ["End-to-end: fits as well, and is faster than the best plan."]
    assert said(64, 50, 1.5) == ["End-to-end: needs less than the best plan, but is not faster."]
    assert said(32, 50, 0.1) == ["End-to-end: is faster than the best plan, with batches of 32 images."]
    assert said(64, 101, 1.01) == ["End-to-end: is as good as the best plan: local learning brings nothing here."]
    assert said(64, 102, 1.0) == said(64, 100, 1.02) == said(32, 100, 0.5) == []
    assert said(64, 150, 1.5) == said(64, 250, 0.5) == said(32, 50, 1.5) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--memory", "lots"], "--memory = 'lots' must be an amount of memory"),
        (["--out", "x.toml"], "give --memory SIZE"),
        (["--machine", "cray"], "--machine cray: neither one of h100, a100, rtx4090, cpu nor a file"),
        (["--machine", "h1000"], "did you mean 'h100'?"),
        (["--memory", "1GiB", "--out", "/nowhere/x.toml"], "cannot write /nowhere/x.toml"),
        (["--timeline", "/nowhere/x.png"], "cannot write /nowhere/x.png: /nowhere is no folder"),
        (["--timeline", "x.gif"], "--timeline x.gif: a picture's name ends in .png, .svg, .pdf"),
    ],
)
def test_wrong_words_are_told(words, said, capsys):
    assert main(["plan", *SMALL, *words]) == 2
    assert said in capsys.readouterr().err


def test_a_machine_may_be_a_preset_a_file_or_what_was_measured_here(tmp_path, capsys):
    own = Machine("my box", "cpu", 2**30, 0, 1e9, (("float32", 1e9),), 1e-6)
    file = tmp_path / "box.json"
    file.write_text(own.to_json())
    assert plan(capsys, "--machine", str(file))["machine"] == "my box"
    assert plan(capsys)["machine"] == "this CPU"
    assert plan(capsys, "--machine", "h100")["machine"] == MACHINES["h100"].name
    kept = tmp_path / "cache" / "mlaan" / "machine.json"
    kept.parent.mkdir(parents=True)
    kept.write_text(own.to_json())
    assert plan(capsys)["machine"] == "my box"
    kept.write_text(MACHINES["h100"].to_json())  # of a GPU that is not there any more
    assert plan(capsys)["machine"] == "this CPU"
    kept.write_text("{}")
    assert main(["plan", *SMALL]) == 2
    assert f"{kept} holds no machine's figures (it lacks 'flops'): `mlaan doctor" in capsys.readouterr().err


def test_a_gpu_elsewhere_is_planned_with_its_kernels(capsys):
    assert plan(capsys, "--machine", "h100")["fused"]
    assert not plan(capsys, "--machine", "h100", "--train.kernels", "reference")["fused"]
    assert not plan(capsys, "--machine", "cpu")["fused"]


def test_a_gpu_of_this_machine_decides_on_kernels_for_itself_alone():
    auto = config(train__kernels="auto")
    with mock.patch("torch.cuda.is_available", return_value=True):
        assert with_kernels(auto, "cuda").train.kernels == "auto"
        assert with_kernels(auto, "cuda", is_here=False).train.kernels == "triton"
        assert with_kernels(auto, "cpu").train.kernels == "reference"


def test_a_plan_that_does_not_fit_is_told(capsys):
    assert main(["plan", *SMALL, "--memory.limit", "2MiB"]) == 0
    assert "It does not fit into memory.limit = '2MiB'" in capsys.readouterr().out


def test_explanation_and_timeline(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    picture = tmp_path / "step.png"
    assert main(["plan", *SMALL, "--explain", "--timeline", str(picture), "--machine", "cpu"]) == 0
    said = capsys.readouterr().out
    assert said.count("Alive then:") == 1
    assert " 0.0 MiB" not in said.split("Alive then:")[1]
    assert str(picture) in said
    assert picture.stat().st_size > 10_000


@pytest.mark.parametrize(("executor", "lanes"), [("eager", 1), ("streams", 2)])
def test_a_timeline_has_the_lanes_of_the_executor(executor, lanes, capsys):
    with mock.patch("mlaan.cli.plan.draw") as draw:
        figures = plan(capsys, "--machine", "a100", "--train.executor", executor, "--timeline", "x.png")
    timeline = draw.call_args.args[0]
    assert len(timeline.lanes) >= lanes if executor == "streams" else timeline.lanes == (0,)
    assert timeline.peak[1] == figures["plans"]["this plan"]["peak_bytes"]


@pytest.mark.slow
@pytest.mark.parametrize("model", ["resnet101"])
def test_a_search_for_a_large_net_takes_seconds(model, tmp_path, capsys):
    """On two idle cores about five; processor time, so that others on this machine do not count."""
    words = ["--model.name", model, "--data.size", "224", "--data.classes", "1000", "--machine", "h100"]
    start = time.process_time()
    figures = plan(capsys, *words, "--memory", "8GiB", "--out", str(tmp_path / "plan.toml"))
    assert time.process_time() - start < 20
    assert len(figures["plans"]) > 1
