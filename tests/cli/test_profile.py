"""`mlaan profile`, from a person's side."""

import json

import pytest

from mlaan.cli import main
from trainer.tiny import flags, one_thread

__all__ = ["one_thread"]


def words(*more, **changes):
    """A tiny run's settings as words of a command line, less the run's folder."""
    given = flags(".", **changes)
    place = given.index("--run.folder")
    return ["profile", *given[:place], *given[place + 2 :], *more]


def test_a_profile_prints_tables_and_writes_picture_trace_and_figures(tmp_path, capsys):
    out = tmp_path / "new" / "profile"
    assert main(words("--steps", "2", "--out", str(out))) == 0
    assert sorted(path.name for path in out.iterdir()) == ["profile.json", "profile.png", "trace.json"]
    figures = json.loads((out / "profile.json").read_text())
    tasks = {(row["module"], row["kind"]): row for row in figures["tasks"]}
    assert {kind for _, kind in tasks} == {"Forward", "Head", "Backward", "Update"}
    assert {module for module, _ in tasks} == {0, 1}
    assert sum(row["share"] for row in tasks.values()) == pytest.approx(1)
    assert sum(row["ms"] for row in tasks.values()) <= figures["step"]["profiled_ms"]
    assert len(figures["step"]["all_profiled_ms"]) == 2
    assert figures["memory"]["peak"] > figures["memory"]["before"] > 0
    assert figures["memory"]["by_step"] == pytest.approx(figures["memory"]["predicted_by_step"], rel=0.2)
    assert figures["config"]["data"]["name"] == "synthetic"
    spans = [e for e in json.loads((out / "trace.json").read_text())["traceEvents"] if e["ph"] == "X"]
    assert len(spans) == sum(row["calls"] for row in tasks.values())
    shown = capsys.readouterr().out
    assert shown.startswith("resnet20 in 2 modules by mlaan on synthetic, batch 8, on cpu: the median of 2 steps\n")
    assert f"the {min(len(spans), 10)} tasks that took longest" in shown
    for text in ("Forward", "share", "calls", "overlap 0.0 %", "predicted by the step", str(out / "profile.png")):
        assert text in shown


def test_no_data_set_is_read(tmp_path, monkeypatch, capsys):
    settings = ["--data.name", "cifar10", "--data.root", str(tmp_path / "nothing"), "--data.batch", "4"]
    monkeypatch.chdir(tmp_path)
    assert main(["profile", "--steps", "1", *settings, "--method.preset", "light", "--train.device", "cpu"]) == 0
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("profile-")
    assert (folder / "trace.json").exists()


@pytest.mark.parametrize(
    ("more", "named"),
    [(["--steps", "0"], "--steps 0"), (["--out", "pyproject.toml"], "pyproject.toml"), (["--stepz", "2"], "--stepz")],
)
def test_what_does_not_fit_is_refused_in_a_line(more, named, capsys):
    assert main(words(*more)) == 2
    assert named in capsys.readouterr().err


def test_too_little_memory_is_said_with_the_task(tmp_path, monkeypatch, capsys):
    from mlaan.errors import StepMemoryError

    def measure(*_, **__):
        raise StepMemoryError("Forward(1)", 1)

    monkeypatch.setattr("mlaan.cli.profile.measure", measure)
    assert main(words("--out", str(tmp_path))) == 2
    said = capsys.readouterr().err
    assert "Forward(1)" in said
    assert "data.batch" in said
