"""What a run of days meets: full disks, second processes, kills and signals at the worst moments."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cli.test_commands import WRITE_AT_ONCE, in_a_process
from mlaan import checkpoint, signed
from mlaan.data.loader import Loader
from mlaan.engine import Engine
from mlaan.run_folder import RunFolder
from trainer.test_trainer import stop_at
from trainer.tiny import STEPS, final_state, one_thread, resume, same, start, write_at_once

__all__ = ["one_thread"]
EVERY_STEP = {"run__checkpoint_minutes": "1e-9"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    torch.set_num_threads(1)
    assert start(folder) == 0
    return folder


def every_checkpoint(folder: Path) -> list[Path]:
    """All of them, each loaded, which fails where one is torn; no leftovers beside them."""
    paths = RunFolder(folder).newest()
    for path in paths:
        checkpoint.load(path)
    return paths


def full_disk(monkeypatch, folder: Path, calls: range) -> None:
    """The checkpoints of these numbers, from 0, meet a full disk half-way."""
    real, count = torch.save, []

    def save(content, file):
        count.append(1)
        if len(count) - 1 in calls:
            file.write(b"PK\x03\x04 half of it")
            every_checkpoint(folder)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(content, file)

    monkeypatch.setattr(signed.torch, "save", save)


def written_late(monkeypatch, steps_done: Callable[[], int]) -> list[bool]:
    """Each checkpoint is written once another step is done, but at an epoch's end, where the run waits.

    Gives for each whether there was another step.
    """
    real, late = signed.write, []

    def write(content, path, links=()):
        step, deadline = content["progress"]["step"], time.monotonic() + 30
        while step % STEPS and steps_done() <= step and time.monotonic() < deadline:
            time.sleep(0.01)
        late.append(steps_done() > step)
        real(content, path, links)

    monkeypatch.setattr(signed, "write", write)
    return late


def test_a_disk_that_is_full_for_a_while_does_not_end_a_run(tmp_path, monkeypatch, capsys, whole):
    full_disk(monkeypatch, tmp_path / "run", range(2, 5))
    assert start(tmp_path / "run", **EVERY_STEP) == 0
    assert "No space left on device: make room there (the run goes on" in capsys.readouterr().out
    assert every_checkpoint(tmp_path / "run")
    assert same(final_state(tmp_path / "run"), final_state(whole))


def test_a_limit_on_the_size_of_files_is_a_full_disk(tmp_path, whole):
    """A real one: the system refuses the bytes."""
    limit = f"""
{WRITE_AT_ONCE}
import resource
from mlaan.engine import Engine
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
real, count = Engine.step, []
def step(self, images, labels):
    count.append(1)
    size = 100_000 if 6 <= len(count) <= 9 else resource.RLIM_INFINITY
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    return real(self, images, labels)
Engine.step = step
"""
    done = in_a_process(tmp_path / "run", limit, **EVERY_STEP)
    assert done.returncode == 0, done.stderr
    assert "make room there (the run goes on" in done.stdout
    assert every_checkpoint(tmp_path / "run")
    assert same(final_state(tmp_path / "run"), final_state(whole))


def test_a_run_that_cannot_save_its_end_says_so_and_goes_on_later(tmp_path, monkeypatch, capsys, whole):
    with monkeypatch.context() as patch:
        full_disk(patch, tmp_path / "run", range(2, 100))
        assert start(tmp_path / "run") == 2
    said = capsys.readouterr().err
    assert "No space left on device" in said
    assert f"from the newest checkpoint, of step {STEPS}" in said
    assert resume(tmp_path / "run") == 0
    assert same(final_state(tmp_path / "run"), final_state(whole))


def test_a_run_that_cannot_save_its_beginning_does_not_begin(tmp_path, monkeypatch, capsys):
    full_disk(monkeypatch, tmp_path / "run", range(100))
    assert start(tmp_path / "run") == 2
    assert "No space left on device" in capsys.readouterr().err
    assert not (tmp_path / "run" / "config.toml").exists()


def test_only_the_newest_checkpoints_and_the_best_stay(tmp_path):
    assert start(tmp_path / "run", run__keep="2", **EVERY_STEP) == 0
    names = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert len(names) == 2
    assert names[-1] == f"step-{3 * STEPS:09}.pt"
    assert (tmp_path / "run" / "last.pt").samefile(tmp_path / "run" / "checkpoints" / names[-1])
    assert checkpoint.load(tmp_path / "run" / "best.pt").progress["best_epoch"] > 0


def test_a_run_that_was_put_back_goes_on_from_there_and_forgets_its_future(tmp_path, monkeypatch):
    """A copy of an older checkpoint in the place of last.pt: later files are no longer gone on from."""
    write_at_once(monkeypatch)
    assert start(tmp_path / "run", **EVERY_STEP) == 0
    folder = RunFolder(tmp_path / "run")
    shutil.copy(folder.checkpoint(3 * STEPS - 2), folder.last)
    with monkeypatch.context() as patch:
        stop_at(patch, 1)
        assert resume(tmp_path / "run", "--train.epochs", "4") == 143
    assert max(checkpoint.load(path).progress["step"] for path in folder.newest()[:3]) == 3 * STEPS - 1
    assert checkpoint.load_first(folder.newest())[0].progress["step"] == 3 * STEPS - 1


def test_damaged_checkpoints_hold_no_place_among_the_newest(tmp_path, monkeypatch):
    write_at_once(monkeypatch)
    assert start(tmp_path / "run", run__keep="2", **EVERY_STEP) == 0
    folder = RunFolder(tmp_path / "run")
    last = folder.checkpoint(3 * STEPS)
    last.write_bytes(last.read_bytes()[:100])
    folder.last.unlink()
    assert resume(tmp_path / "run") == 0
    assert [checkpoint.load(path).progress["step"] for path in folder.newest()[:2]] == [3 * STEPS, 3 * STEPS - 1]


def test_a_checkpoint_is_of_its_step_though_steps_go_on_while_it_is_written(tmp_path, monkeypatch):
    states: dict[int, dict] = {}
    real_step = Engine.step

    def step(self, images, labels):
        result = real_step(self, images, labels)
        states[len(states) + 1] = {name: value.clone() for name, value in self.backbone.net.state_dict().items()}
        return result

    monkeypatch.setattr(Engine, "step", step)
    overtaken = written_late(monkeypatch, lambda: len(states))
    assert start(tmp_path / "run", run__keep="100", **EVERY_STEP) == 0
    assert any(overtaken), "no step was taken while a checkpoint was written"
    found = every_checkpoint(tmp_path / "run")
    assert len(found) > 4
    for saved in map(checkpoint.load, found):
        if step_number := saved.progress["step"]:
            wanted = states[step_number]
            assert all(torch.equal(value, wanted[name]) for name, value in saved.engine["backbone"].items())


@pytest.fixture
def holder(tmp_path, whole):
    """Another process that trains in the folder."""
    shutil.copytree(whole, tmp_path / "run")
    code = "import sys, time; from pathlib import Path; from mlaan.run_folder import RunFolder\n"
    code += "with RunFolder(Path(sys.argv[1])).locked(): print('held', flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_second_process_is_refused_until_the_first_is_gone_however_it_went(tmp_path, capsys, holder):
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run").iterdir()}
    assert resume(tmp_path / "run", "--train.epochs", "4") == 2
    said = capsys.readouterr().err
    assert f"process {holder.pid} on {os.uname().nodename} is training in {tmp_path / 'run'}" in said
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run").iterdir()} == before
    holder.kill()
    holder.wait()
    assert resume(tmp_path / "run", "--train.epochs", "4") == 0


def test_a_file_system_without_locks_is_said_to_be_one(tmp_path, monkeypatch, capsys):
    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.lockf", refuse)
    assert start(tmp_path / "run", train__epochs="1") == 0
    assert "is on a file system without locks" in capsys.readouterr().out


def test_a_start_that_was_killed_before_it_was_a_run_can_be_made_again(tmp_path):
    """Between the folder and its config.toml."""
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    for name in (".lock", "env.json", "metrics.jsonl", ".last.pt.123.tmp", ".config.toml.123.tmp"):
        (tmp_path / "run" / name).write_text("")
    assert start(tmp_path / "run", train__epochs="1") == 0
    assert not list((tmp_path / "run").glob("*.tmp"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / ".lock").write_text("")
    (tmp_path / "mine" / "thesis.tex").write_text("")
    assert start(tmp_path / "mine") == 2


@pytest.mark.parametrize("place", ["mlaan.cli.train.require_fit", "mlaan.cli.train.build"])
def test_sigterm_before_the_first_step_ends_the_run_at_once_and_leaves_nothing(tmp_path, monkeypatch, capsys, place):
    monkeypatch.setattr(place, lambda *_, **__: signal.raise_signal(signal.SIGTERM))
    assert start(tmp_path / "run") == 143
    assert "stopped before the first step" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_sigterm_while_a_checkpoint_is_written_leaves_it_whole(tmp_path, monkeypatch, whole):
    real, calls = signed.write, []

    def write(content, path, links=()):
        calls.append(1)
        if len(calls) == 3:
            assert threading.current_thread() is not threading.main_thread()
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.2)
        real(content, path, links)

    with monkeypatch.context() as patch:
        patch.setattr(signed, "write", write)
        assert start(tmp_path / "run", **EVERY_STEP) == 143
    assert every_checkpoint(tmp_path / "run")
    assert not list((tmp_path / "run").rglob("*.tmp"))
    assert resume(tmp_path / "run") == 0
    assert same(final_state(tmp_path / "run"), final_state(whole))


def test_a_second_sigint_while_a_checkpoint_is_written_leaves_no_torn_file(tmp_path, whole):
    sabotage = """
from mlaan import signed
import time, torch
save, count = torch.save, []
def slow(content, file):
    count.append(1)
    if len(count) == 3:
        file.write(b"half")
        file.flush()
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(30)
    save(content, file)
signed.torch.save = slow
"""
    stopped = in_a_process(tmp_path / "run", sabotage, **EVERY_STEP)
    assert stopped.returncode == 130, stopped.stderr
    assert "stopped at once" in stopped.stdout
    assert every_checkpoint(tmp_path / "run")
    assert resume(tmp_path / "run") == 0
    assert not list((tmp_path / "run").rglob("*.tmp"))
    assert same(final_state(tmp_path / "run"), final_state(whole))


def test_the_negative_control_a_run_without_its_loaders_place_ends_elsewhere(tmp_path, monkeypatch, whole):
    from trainer.test_trainer import stop_at

    with monkeypatch.context() as patch:
        stop_at(patch, STEPS + 2)
        assert start(tmp_path / "run") == 143
    monkeypatch.setattr(Loader, "load_state_dict", lambda self, state: None)
    assert resume(tmp_path / "run") == 0
    assert not same(final_state(tmp_path / "run"), final_state(whole))


def test_a_run_says_how_much_of_its_time_it_waited_for_data(tmp_path, capsys, monkeypatch):
    real = Loader.__iter__

    def slow(self):
        for batch in real(self):
            time.sleep(0.02)
            self.stats.waited += 0.02
            yield batch

    monkeypatch.setattr(Loader, "__iter__", slow)
    assert start(tmp_path / "run", train__epochs="1") == 0
    assert "% waiting for data" in capsys.readouterr().out
    from mlaan.observe.metrics import read_epochs

    [epoch] = read_epochs(tmp_path / "run" / "metrics.jsonl")
    assert 0.05 < epoch["data_wait"] < 1
    assert epoch["left_out"] == 0


def test_on_a_full_disk_no_run_begins_or_goes_on_and_one_line_says_why(tmp_path, whole):
    """No byte at all can be written."""
    limit = "import resource\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    limit += "resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))\n"
    new = in_a_process(tmp_path / "new", limit, run__tensorboard="true")
    assert (new.returncode, new.stderr.count("\n")) == (2, 1), new.stderr
    assert new.stderr.endswith("env.json: File too large: make room there\n")
    shutil.copytree(whole, tmp_path / "run")
    words = ["train", "--resume", str(tmp_path / "run"), "--train.epochs", "4", "--run.tensorboard", "true"]
    again = in_a_process(tmp_path / "run", f"{limit}from mlaan.cli import main\nsys.exit(main({words!r}))")
    assert (again.returncode, again.stderr.count("\n")) == (2, 1), again.stderr
    assert again.stderr.endswith("config.toml: File too large: make room there\n")
    assert same(final_state(tmp_path / "run"), final_state(whole))
    assert resume(tmp_path / "run", "--train.epochs", "4") == 0
