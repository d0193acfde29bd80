"""What surrounds the training of `mlaan train`: the folder's lock, what a run that goes on keeps, and what it says."""

import json
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from mlaan.build import build
from mlaan.cli.settings import keys
from mlaan.errors import UserError
from mlaan.run_folder import RunFolder
from trainer.test_trainer import stop_at
from trainer.tiny import STEPS, config, one_thread, resume, start

__all__ = ["one_thread"]
OF_A_RESUME = {
    *("run.checkpoint_minutes", "run.keep", "run.on_nan", "run.tensorboard"),
    *("train.epochs", "memory.limit", "data.root", "data.download", "data.backend", "data.workers"),
}
"""All the settings that a run may go on with other values of."""


@pytest.fixture(scope="module")
def stopped(tmp_path_factory) -> Path:
    """A run that was stopped after a step of its second epoch."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, STEPS + 1)
        assert start(folder) == 143
    return folder


@pytest.fixture
def run(stopped, tmp_path) -> Path:
    shutil.copytree(stopped, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def no_steps(monkeypatch):
    """Runs are broken off, with 130, where their first step would be."""

    def train(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("mlaan.cli.train.train", train)


def is_locked(folder: Path) -> bool:
    """Whether another process would be refused; only another one can tell."""
    lock = "import fcntl, sys; fcntl.lockf(open(sys.argv[1], 'a'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    tried = subprocess.run([sys.executable, "-S", "-c", lock, folder / ".lock"], capture_output=True, text=True)
    assert tried.returncode == 0 or "BlockingIOError" in tried.stderr, tried.stderr
    return tried.returncode != 0


def test_the_folder_is_locked_while_a_run_trains(tmp_path, monkeypatch):
    seen = []

    def train(*_):
        seen.append(is_locked(tmp_path / "run"))
        raise KeyboardInterrupt

    monkeypatch.setattr("mlaan.cli.train.train", train)
    assert start(tmp_path / "run") == 130
    assert resume(tmp_path / "run") == 130
    assert seen == [True, True]
    assert not is_locked(tmp_path / "run")


def test_the_second_of_two_starters_leaves_the_run_of_the_first_alone(tmp_path, monkeypatch, capsys):
    """Both find the folder empty; the first one has trained there by the time that the second has its lock."""
    real = RunFolder.locked

    @contextmanager
    def late(self):
        self.write_config(config(train__epochs="7"))
        with real(self) as note:
            yield note

    monkeypatch.setattr(RunFolder, "locked", late)
    assert start(tmp_path / "run") == 2
    assert f"{tmp_path / 'run'} holds a run by now: give another --run.folder" in capsys.readouterr().err
    assert "epochs = 7\n" in (tmp_path / "run" / "config.toml").read_text()
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_every_other_setting_is_refused_on_the_way_on(tmp_path, capsys):
    RunFolder(tmp_path).write_config(config())
    refused = set()
    for key in keys():
        assert resume(tmp_path, f"--{key}", "?") == 2  # that is no value of those that may change either
        if f"--{key} ? cannot change a run that goes on" in capsys.readouterr().err:
            refused.add(key)
    assert {*keys()} - refused == OF_A_RESUME


def test_the_memory_limit_holds_before_anything_is_built(run, tmp_path, monkeypatch):
    done = []

    def building(*_):
        done.append("built")
        raise UserError("enough was seen")

    monkeypatch.setattr("mlaan.cli.train.hold_to_limit", lambda settings, device: done.append(settings.memory.limit))
    monkeypatch.setattr("mlaan.cli.train.build", building)
    assert start(tmp_path / "new", memory__limit="1GiB") == 2
    assert resume(run, "--memory.limit", "2GiB") == 2
    assert done == ["1GiB", "built", "2GiB", "built"]


def test_the_weights_that_a_run_began_with_are_not_needed_again(tmp_path, no_steps):
    weights = tmp_path / "net.pth"
    torch.save(build(config()).engine.backbone.net.state_dict(), weights)
    assert start(tmp_path / "run", model__weights=str(weights)) == 130
    weights.unlink()
    assert resume(tmp_path / "run") == 130


def test_what_is_not_as_it_was_is_said_and_where_the_run_began_stays_on_record(run, no_steps, capsys):
    record = run / "env.json"
    was = json.loads(record.read_text())
    other = {"torch": "1.0", "threads": 77, "device": "cuda:1", "cpu": "abacus", "gpus": ["H9"], "kernels": "triton"}
    record.write_text(json.dumps(was | other | {"python": "2.7"}))
    before = record.read_bytes()
    capsys.readouterr()
    assert resume(run) == 130
    start, said = "the last bits may come out otherwise than in one go: ", capsys.readouterr().out.splitlines()
    told = [line.removeprefix(start) for line in said if line.startswith(start)]
    assert sorted(told) == sorted(f"{key} was {value}, is {was[key]}" for key, value in other.items())
    assert record.read_bytes() == before


def test_a_gap_in_the_metrics_is_said(run, no_steps, capsys):
    metrics = run / "metrics.jsonl"
    size = metrics.stat().st_size
    assert size > 0
    metrics.write_text("")
    capsys.readouterr()
    assert resume(run) == 130
    assert f"metrics.jsonl lacks {size} bytes that it had at the checkpoint: there is a gap" in capsys.readouterr().out
