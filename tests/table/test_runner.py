"""Training the runs of a table, by stand-ins for `mlaan train` that leave the same folders."""

import fcntl
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from mlaan.config import dumps
from mlaan.errors import UserError
from mlaan.table import runner
from mlaan.table.runs import Run
from table.folders import finish, row, run

STAND_IN = """
import json, os, signal, sys, time
from pathlib import Path
words = dict(word.lstrip("-").split("=", 1) for word in sys.argv[1:] if "=" in word)
resumed = sys.argv[1] == "--resume"
folder = Path(sys.argv[2] if resumed else words["run.folder"])
source = Path(sys.argv[2])
name = folder.name
note = {"name": name, "words": sys.argv[1:], "threads": os.environ.get("OMP_NUM_THREADS"), "at": time.time()}
links = [f"/proc/self/fd/{fd}" for fd in range(3, 99)]
note["open"] = [os.path.basename(os.readlink(link)) for link in links if os.path.exists(link)]
with open(folder.parent / "calls", "a") as calls:
    calls.write(json.dumps(note) + "\\n")
if "fails" in name:
    print("mlaan: one line of a reason", file=sys.stderr)
    sys.exit(2)
if "waits" in name:
    signal.signal(signal.SIGINT, lambda *_: sys.exit(130))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    (folder.parent / "waiting").touch()
    time.sleep(60)
time.sleep(float(os.environ.get("NAP", 0)))
ready = folder.parent / f"{name}.ready"
if not resumed:
    ready.rename(folder)
else:
    (ready / "metrics.jsonl").replace(folder / "metrics.jsonl")
    (folder / "last.pt").touch()
"""


@pytest.fixture(autouse=True)
def stand_in(tmp_path, monkeypatch):
    script = tmp_path / "stand_in.py"
    script.write_text(STAND_IN)
    monkeypatch.setattr(runner, "command", lambda words: [sys.executable, "-S", str(script), *words])
    monkeypatch.setattr(runner, "POLL_SECONDS", 0.01)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


def runs_of(folder: Path, *names: str, seeds: int = 1) -> list[Run]:
    """Runs that the stand-in can finish: it moves <name>.ready, made here, to the run's place."""
    rows = [row(folder, name) for name in names]
    every = [run(folder, each, seed) for seed in range(seeds) for each in rows]
    for each in every:
        finish(each)
        each.folder.path.rename(folder / f"{each.name}.ready")
    return every


def train(folder: Path, runs: list[Run], jobs: int = 1) -> tuple[runner.Outcome, list[str]]:
    said: list[str] = []
    return runner.train(folder, runs, [("train.epochs", "3")], jobs, said.append), said


def calls(folder: Path) -> list[dict]:
    import json

    return [json.loads(line) for line in (folder / "calls").read_text().splitlines()]


def test_runs_go_in_order_with_their_settings_and_are_said(tmp_path):
    runs = runs_of(tmp_path, "a", "b", seeds=2)
    outcome, said = train(tmp_path, runs)
    assert outcome == runner.Outcome([], 0)
    assert [call["name"] for call in calls(tmp_path)] == ["a-seed0", "b-seed0", "a-seed1", "b-seed1"]
    expected = f"--config {tmp_path}/b.toml --train.epochs=3 --train.seed=1 --run.folder={tmp_path}/b-seed1"
    assert calls(tmp_path)[3]["words"] == expected.split()
    assert calls(tmp_path)[0]["threads"] is None
    assert said[0] == "[1/4] a-seed0: top-1 error 25.00 %, 0:30 | 1:30 left"
    assert said[3] == "[4/4] b-seed1: top-1 error 25.00 %, 0:30 | 0:00 left"


def test_finished_runs_are_kept_and_stopped_ones_resumed(tmp_path):
    runs = runs_of(tmp_path, "a", "b", "c")
    (tmp_path / "a-seed0.ready").rename(runs[0].folder.path)
    finish(runs[1], epochs=1)
    outcome, said = train(tmp_path, runs)
    assert outcome.failed == []
    assert [call["words"][0] for call in calls(tmp_path)] == ["--resume", "--config"]
    assert calls(tmp_path)[0]["words"] == ["--resume", str(runs[1].folder.path)]
    assert said[0] == "1 of 3 runs finished already: kept"
    assert {each.state() for each in runs} == {"finished"}
    assert train(tmp_path, runs)[1] == ["3 of 3 runs finished already: kept"]
    assert len(calls(tmp_path)) == 2


def test_a_failed_run_is_said_and_the_others_go_on(tmp_path):
    runs = runs_of(tmp_path, "fails", "a")
    outcome, said = train(tmp_path, runs)
    assert outcome == runner.Outcome(["fails-seed0"], 0)
    assert said[0] == f"fails-seed0 failed: one line of a reason; see {tmp_path}/fails-seed0.log"
    assert runs[1].state() == "finished"


def test_a_process_that_ends_well_without_a_finished_run_has_failed(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "command", lambda words: [sys.executable, "-S", "-c", "print('odd')"])
    outcome, said = train(tmp_path, [run(tmp_path, row(tmp_path))])
    assert outcome.failed == ["a-seed0"]
    assert "failed: odd; see" in said[0]


def test_jobs_run_beside_each_other_on_a_thread_each(tmp_path, monkeypatch):
    monkeypatch.setenv("NAP", "1")
    runs = runs_of(tmp_path, "a", "b", "c")
    train(tmp_path, runs, jobs=2)
    first, second, third = (call["at"] for call in calls(tmp_path))
    assert second - first < 0.9 <= third - first
    assert {call["threads"] for call in calls(tmp_path)} == {"1"}
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    train(tmp_path / "more", [], jobs=2)
    train(tmp_path, runs_of(tmp_path, "d"), jobs=2)
    assert calls(tmp_path)[-1]["threads"] == "2"


def once_waiting(folder: Path, act) -> threading.Thread:
    def wait() -> None:
        while not (folder / "waiting").exists():
            time.sleep(0.01)
        act()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_process_and_starts_no_other(tmp_path, number):
    runs = runs_of(tmp_path, "waits", "a")
    before = signal.getsignal(number)
    thread = once_waiting(tmp_path, lambda: os.kill(os.getpid(), number))
    outcome, said = train(tmp_path, runs)
    thread.join()
    assert outcome == runner.Outcome([], number)
    assert [call["name"] for call in calls(tmp_path)] == ["waits-seed0"]
    assert said == ["stopping 1 run after the present step"]
    assert signal.getsignal(number) is before


def test_nothing_outlives_an_error(tmp_path, monkeypatch):
    runs = runs_of(tmp_path, "waits")
    started = []
    real = runner._Pool._start
    monkeypatch.setattr(runner._Pool, "_start", lambda self, run: (real(self, run), started.extend(self._running)))

    def collect(self, **_):
        while not (tmp_path / "waiting").exists():
            time.sleep(0.01)
        raise RuntimeError

    monkeypatch.setattr(runner._Pool, "_collect", collect)
    with pytest.raises(RuntimeError):
        train(tmp_path, runs)
    assert started[0].popen.returncode == 143


def test_a_second_call_is_refused_also_while_a_process_is_left_behind(tmp_path):
    with (tmp_path / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="is at work in"):
            train(tmp_path, runs_of(tmp_path, "a"))
    train(tmp_path, runs_of(tmp_path, "b"))
    assert calls(tmp_path)[0]["open"] == [".lock"]  # the process holds the lock, too


def test_other_settings_stop_it_before_anything_starts(tmp_path):
    runs = runs_of(tmp_path, "a", "b")
    finish(runs[1])
    text = dumps(runs[1].config).replace("batch = 8", "batch = 4")
    runs[1].folder.config.write_text(text)
    with pytest.raises(UserError, match=r"data.batch = 4"):
        train(tmp_path, runs)
    assert not (tmp_path / "calls").exists()


def test_time_left_is_by_the_runs_of_the_same_config(tmp_path):
    runs = runs_of(tmp_path, "a", "b", seeds=2)
    finish(runs[0], seconds=100)
    finish(runs[1], seconds=10)
    _, said = train(tmp_path, runs)
    assert said[1] == "[3/4] a-seed1: top-1 error 25.00 %, 0:30 | 0:10 left"
