"""Trains the runs of a table that are not finished, each in a process of its own, so many at a time."""

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, NamedTuple

from mlaan.errors import UserError
from mlaan.observe.stop import StopRequest
from mlaan.observe.words import counted, duration
from mlaan.table.runs import Run

POLL_SECONDS = 0.2
"""Between two looks at the processes."""

PATIENCE_SECONDS = 20.0
"""For a process that was told to stop at once, before it is killed."""

_LOCK = ".lock"


class Outcome(NamedTuple):
    """How a call ended: the names of the runs that failed, and the signal that stopped it or 0."""

    failed: list[str]
    signal_number: int


class _Process(NamedTuple):
    run: Run
    popen: subprocess.Popen[bytes]
    started: float
    seconds_before: float


def train(
    folder: Path, runs: Sequence[Run], overrides: Sequence[tuple[str, str]], jobs: int, say: Callable[[str], None]
) -> Outcome:
    """Trains what is not finished, in the order given; a failed run is said and the others go on.

    A run that was stopped goes on from its checkpoint, bit for bit. After SIGINT or SIGTERM each process writes its
    checkpoint and ends; after another SIGINT it ends at once. With several jobs each computes on one thread, unless
    OMP_NUM_THREADS says otherwise.

    Args:
        folder: the table's, locked while this call or a process it started is at work.
        overrides: settings for new runs, beside their config files.
        say: shows a line of progress.

    Raises:
        UserError: another call works in `folder`, or a run there was made with other settings.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / _LOCK).open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"another `mlaan table`, or a run that it started, is at work in {folder}: wait") from None
        for run in runs:
            run.require_same_settings()
            run.require_own_folder()
        with StopRequest() as stop:
            return _Pool(runs, overrides, jobs, say, lock).work(stop)


def command(words: Sequence[str]) -> list[str]:
    """A process of `mlaan train` with these words after it."""
    return [sys.executable, "-m", "mlaan.cli", "train", *words]


class _Pool:
    def __init__(
        self,
        runs: Sequence[Run],
        overrides: Sequence[tuple[str, str]],
        jobs: int,
        say: Callable[[str], None],
        lock: IO[str],
    ) -> None:
        self._runs, self._overrides, self._jobs, self._say, self._lock = runs, overrides, jobs, say, lock
        self._waiting = [run for run in runs if run.state() != "finished"]
        self._running: list[_Process] = []
        self._failed: list[str] = []
        if kept := len(runs) - len(self._waiting):
            say(f"{kept} of {counted(len(runs), 'run')} finished already: kept")

    def work(self, stop: StopRequest) -> Outcome:
        try:
            while (self._waiting or self._running) and not stop.signal_number:
                while self._waiting and len(self._running) < self._jobs:
                    self._start(self._waiting.pop(0))
                self._collect()
                time.sleep(POLL_SECONDS)
            if self._running:
                self._say(f"stopping {counted(len(self._running), 'run')} after the present step")
                self._signal(stop.signal_number)
            while self._running:
                self._collect(is_stopping=True)
                time.sleep(POLL_SECONDS)
        except KeyboardInterrupt:
            self._signal(signal.SIGINT)  # the second that they see: they end at once
        finally:
            self._end()
        return Outcome(self._failed, stop.signal_number)

    def _start(self, run: Run) -> None:
        epochs = run.epochs()
        if run.state() == "missing":
            words = ["--config", str(run.row.file), *(f"--{key}={text}" for key, text in self._overrides)]
            words += [f"--train.seed={run.seed}", f"--run.folder={run.folder.path}"]
        else:
            words = ["--resume", str(run.folder.path)]
        environment = dict(os.environ)
        if self._jobs > 1:
            environment.setdefault("OMP_NUM_THREADS", "1")
        with run.log.open("ab") as log:
            popen = subprocess.Popen(
                command(words),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                process_group=0,  # a terminal's Ctrl-C comes to this process alone, which passes it on once
                pass_fds=[self._lock.fileno()],  # holds the lock should this process be killed before its run
            )
        self._running.append(_Process(run, popen, time.monotonic(), epochs[-1]["seconds"] if epochs else 0.0))

    def _collect(self, *, is_stopping: bool = False) -> None:
        """Says what has ended."""
        for process in [each for each in self._running if each.popen.poll() is not None]:
            self._running.remove(process)
            run = process.run
            if is_stopping and run.state() != "finished":
                continue
            if process.popen.returncode or run.state() != "finished":
                self._failed.append(run.name)
                self._say(f"{run.name} failed: {_last_line(run.log)}; see {run.log}")
                continue
            last = run.epochs()[-1]
            done = len(self._runs) - len(self._waiting) - len(self._running) - len(self._failed)
            error = f"{100 * (1 - last['test_top1']):.2f} %"
            self._say(
                f"[{done}/{len(self._runs)}] {run.name}: top-1 error {error}, {duration(last['seconds'])}"
                f" | {duration(self._seconds_left())} left"
            )

    def _seconds_left(self) -> float:
        """By the runs that are finished: those of the same config where there are any, else all."""
        spent: dict[Path, list[float]] = {}
        for run in self._runs:
            if run.state() == "finished":
                spent.setdefault(run.row.file, []).append(run.epochs()[-1]["seconds"])
        every = [seconds for group in spent.values() for seconds in group]

        def expected(run: Run) -> float:
            group = spent.get(run.row.file, every)
            return sum(group) / len(group)

        total = 0.0
        for run in self._waiting:
            epochs = run.epochs()
            total += max(0.0, expected(run) - (epochs[-1]["seconds"] if epochs else 0.0))
        for process in self._running:
            so_far = process.seconds_before + time.monotonic() - process.started
            total += max(0.0, expected(process.run) - so_far)
        return total / self._jobs

    def _signal(self, number: int) -> None:
        for process in self._running:
            process.popen.send_signal(number)

    def _end(self) -> None:
        """Leaves no process behind, whatever happened."""
        self._signal(signal.SIGTERM)  # changes nothing for those that are stopping already
        deadline = time.monotonic() + PATIENCE_SECONDS
        for process in self._running:
            try:
                process.popen.wait(max(0.0, deadline - time.monotonic()))
            except (subprocess.TimeoutExpired, KeyboardInterrupt):
                process.popen.kill()
                process.popen.wait()


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return lines[-1].removeprefix("mlaan: ") if lines else "it printed nothing"
