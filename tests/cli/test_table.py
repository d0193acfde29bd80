"""`mlaan table`, from a person's side."""

import json
import sys
from pathlib import Path

import pytest

from mlaan.cli import main
from mlaan.config import dumps
from mlaan.engine import Engine
from mlaan.table import runner
from trainer.tiny import config, final_state, one_thread, same, start

__all__ = ["one_thread"]

PRESETS = ("light", "paper")


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A folder with a config for each preset, and figures for one of them."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "study").mkdir()
    for preset in PRESETS:
        text = dumps(config(method__preset=preset, train__epochs="1"))
        (tmp_path / "study" / f"{preset}.toml").write_text(text)
    (tmp_path / "study/published.toml").write_text(
        '[sources]\nx = "X"\n[rows]\nlight = { error = 12.5, source = "x" }\n'
    )
    return tmp_path / "study"


def test_it_trains_what_is_missing_resumes_what_was_stopped_and_keeps_the_rest(study, tmp_path, capsys, monkeypatch):
    with monkeypatch.context() as stop:
        steps = []

        def step(self, *batch, _step=Engine.step):
            steps.append(1)
            if len(steps) == 3:
                raise KeyboardInterrupt
            return _step(self, *batch)

        stop.setattr(Engine, "step", step)
        there = tmp_path / "runs/table/study/paper-seed5"
        assert start(there, method__preset="paper", train__epochs="1", train__seed="5") == 130
    words = ["table", "study", "--seeds", "5", "--jobs", "2"]
    assert main(words) == 0
    out, err = capsys.readouterr()
    assert "[2/2]" in err
    rows = {line.split()[0]: line.split() for line in out.splitlines() if line}
    assert rows["light"][1] == "12.50"
    assert rows["paper"][1] == "-"
    for preset in PRESETS:
        alone = tmp_path / f"alone-{preset}"
        start(alone, method__preset=preset, train__epochs="1", train__seed="5")
        assert same(final_state(tmp_path / f"runs/table/study/{preset}-seed5"), final_state(alone))

    monkeypatch.setattr(runner, "command", lambda words: pytest.fail("started a finished run"))
    capsys.readouterr()
    assert main([*words, "--json"]) == 0
    out, err = capsys.readouterr()
    light, paper = json.loads(out)
    assert (light["row"], light["published_error"], light["n"]) == ("light", 12.5, 1)
    assert paper["seeds"]["5"]["state"] == "finished"
    assert err == "2 of 2 runs finished already: kept\n"

    assert main([*words, "--data.batch", "4", "--folder", "runs/table/study"]) == 2
    assert "light-seed5 holds a run with data.batch = 8, but study/light.toml" in capsys.readouterr().err


def test_only_print_trains_and_writes_nothing(study, capsys, monkeypatch):
    monkeypatch.setattr(runner, "command", lambda words: pytest.fail("started a run"))
    assert main(["table", str(study / "paper.toml"), "--only-print"]) == 0
    assert capsys.readouterr().out.splitlines()[1].split() == ["paper", "-", "-", "0", "1", "-", "3", "missing"]
    assert not Path("runs").exists()


def test_no_published_figure_stands_beside_runs_of_other_settings(study, capsys):
    words = ["table", "study/light.toml", "--only-print", "--folder", "look"]
    changes = ["--train.epochs", "2", "--data.batch=4", "--train.epochs", "3"]
    for harmless in ([], ["--train.device", "cpu", "--run.tensorboard", "true"]):
        assert main([*words, *harmless]) == 0
        out = capsys.readouterr().out
        assert "12.50" in out
        assert "left out" not in out
    assert main([*words, "--train.device", "cpu", *changes]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[1].split()[:2] == ["light", "-"]
    note = "-     published figures are left out: these runs have settings of their own, train.epochs, data.batch"
    assert out.splitlines()[-1] == note
    assert main([*words, *changes, "--json"]) == 0
    [light] = json.loads(capsys.readouterr().out)
    assert (light["published_error"], light["published_memory_gb"], light["source"]) == (None, None, "")


def test_settings_of_the_same_recipe_need_no_folder(study, capsys):
    words = ["table", "study", "--only-print", "--train.device", "cpu", "--run.tensorboard=false"]
    assert main(words) == 0
    assert "12.50" in capsys.readouterr().out


def test_a_failed_run_gives_status_1_and_the_table(study, capsys, monkeypatch):
    code = "import sys; print(*sys.argv[1:]); sys.exit(2)"
    monkeypatch.setattr(runner, "command", lambda words: [sys.executable, "-S", "-c", code, *words])
    file = str(study / "light.toml")
    assert main(["table", file, "--seeds", "7", "--folder", "elsewhere", "--data.batch", "4"]) == 1
    out, err = capsys.readouterr()
    words = f"--config {file} --data.batch=4 --train.seed=7 --run.folder=elsewhere/light-seed7"
    assert err == f"light-seed7 failed: {words}; see elsewhere/light-seed7.log\n"
    assert out.splitlines()[1].endswith("1 missing")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["study", "--train.seed", "1"], "--train.seed 1 does not fit `mlaan table`: use --seeds"),
        (["study", "--run.folder=x"], "use --folder"),
        (["study", "--seeds", "1,x"], "--seeds 1,x must be different whole numbers"),
        (["study", "--seeds", "1,1"], "--seeds 1,1 must be different whole numbers"),
        (["study", "--train.device=cpu", "--train.epochs", "2"], "--train.epochs makes other runs than the config"),
        (["study", "--data.batch", "4", "--only-print"], "add --folder with a folder of their own"),
        (["a-run"], "a-run is a run folder: its results: `mlaan report a-run`"),
        (["study", "--jobs", "0"], "--jobs 0 must be at least 1"),
        (["study", "--epochs", "3"], "did you mean '--train.epochs'?"),
        (["study/lihgt.toml"], "did you mean study/light.toml?"),
        (["study/light.toml", "other/x.toml"], "the configs lie in several folders (other, study)"),
        ([], "the following arguments are required: FILE"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_words_get_one_line_with_the_fix(study, capsys, words, says):
    (study.parent / "other").mkdir()
    (study.parent / "other/x.toml").write_text((study / "light.toml").read_text())
    (study.parent / "a-run").mkdir()
    (study.parent / "a-run/config.toml").write_text((study / "light.toml").read_text())
    (study.parent / "a-run/metrics.jsonl").touch()
    assert main(["table", *words]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1


def test_help_has_examples(capsys):
    with pytest.raises(SystemExit):
        main(["table", "--help"])
    out = capsys.readouterr().out
    assert "  mlaan table configs/paper/svhn --only-print" in out
    [look] = [line for line in out.splitlines() if "--train.epochs" in line]
    assert "--folder runs/look" in look
