"""Lines on their way to metrics.jsonl, while its disk is full or slow."""

import errno
import json
import os
import threading
import time

import pytest

from mlaan.observe import log_writer
from mlaan.observe.log_writer import LogWriter
from mlaan.observe.metrics import MetricsLog


class Disk(MetricsLog):
    """One that may be full."""

    is_full = False

    def append(self, line: bytes) -> None:
        if self.is_full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        super().append(line)


class Logs:
    """A run's logs, what they said, and what is in the file."""

    def __init__(self, disk: Disk) -> None:
        self.disk, self.said = disk, []
        self.writer = LogWriter(disk, None, self.said.append)

    def write(self, *steps: int, kind: str = "step") -> int:
        """The file's length with these lines."""
        for step in steps:
            self.writer.write({"type": kind, "step": step})
        return self.writer.length

    def lines(self) -> list[tuple[str, int]]:
        return [(line["type"], line["step"]) for line in map(json.loads, self.disk.path.read_text().splitlines())]

    def steps(self) -> list[int]:
        return [step for _, step in self.lines()]

    def close(self, *, is_full: bool = False) -> None:
        self.disk.is_full = is_full
        self.writer.close()


@pytest.fixture
def logs(tmp_path, monkeypatch) -> Logs:
    """What fails twice is tried again at the end alone."""
    monkeypatch.setattr(log_writer, "_RETRY_SECONDS", 1000.0)
    return Logs(Disk(tmp_path / "metrics.jsonl"))


def begin(call, *arguments) -> threading.Thread:
    thread = threading.Thread(target=call, args=arguments, daemon=True)
    thread.start()
    return thread


def in_time(call, *arguments) -> None:
    """Fails in place of a test that never ends."""
    thread = begin(call, *arguments)
    thread.join(30)
    assert not thread.is_alive(), "it waits for ever"


def test_a_disk_that_is_full_for_hours_costs_steps_and_no_epoch(logs, monkeypatch):
    monkeypatch.setattr(log_writer, "MOST_STEPS", 3)
    logs.disk.is_full = True
    for epoch in (1, 2, 3):
        logs.write(2 * epoch - 1, 2 * epoch)
        length = logs.write(2 * epoch, kind="epoch")
    logs.close()
    assert logs.lines() == [("step", 1), ("step", 2), ("epoch", 2), ("epoch", 4), ("epoch", 6)]
    assert length == logs.disk.path.stat().st_size
    assert logs.said[-1] == f"{logs.disk.path} lacks 4 lines that could not be written"


@pytest.mark.parametrize("failures", [0, 1])
def test_what_waits_at_the_end_is_written_though_a_try_of_before_fails(logs, monkeypatch, failures):
    real, left, is_writing = Disk.append, [True] * failures, threading.Event()

    def slow(self, line):
        is_writing.set()
        while not logs.writer._closing:
            time.sleep(0.001)
        self.is_full = bool(left) and left.pop()
        real(self, line)

    monkeypatch.setattr(Disk, "append", slow)
    logs.write(1, 2, 3)
    assert is_writing.wait(30)
    logs.writer.close()
    assert logs.steps() == [1, 2, 3]
    assert not any("lacks" in line for line in logs.said)


def test_a_disk_with_room_again_gets_all_lines_and_a_person_hears_of_both(logs):
    logs.write(1)
    in_time(logs.writer.flush, logs.writer.length)
    logs.disk.is_full = True
    length = logs.write(2, 3)
    in_time(logs.writer.flush, length)
    assert logs.steps() == [1]
    logs.disk.is_full = False
    in_time(logs.writer.flush, logs.write(4))
    logs.close()
    assert logs.steps() == [1, 2, 3, 4]
    path = logs.disk.path
    full = f"{path} cannot be written (No space left on device): its lines wait"
    assert logs.said == [full, f"{path} is written again"]


def test_lines_that_never_found_room_are_counted(logs):
    logs.write(1)
    in_time(logs.writer.flush, logs.writer.length)
    logs.disk.is_full = True
    logs.write(2, 3)
    logs.close(is_full=True)
    assert logs.steps() == [1]
    assert logs.said[-1] == f"{logs.disk.path} lacks 2 lines that could not be written"


def test_going_back_keeps_waiting_lines_of_before_and_no_others(logs):
    logs.disk.is_full = True
    length = logs.write(1, 2)
    logs.write(3, 4)
    logs.writer.go_back(length, 2)
    assert logs.writer.length == length
    logs.write(5)
    logs.close()
    assert logs.steps() == [1, 2, 5]


def test_going_back_cuts_off_written_lines_and_forgets_waiting_ones(logs):
    length = logs.write(1)
    in_time(logs.writer.flush, logs.write(2))
    logs.disk.is_full = True
    logs.write(3)
    logs.writer.go_back(length, 1)
    assert (logs.writer.length, logs.steps()) == (length, [1])
    logs.write(4)
    logs.close()
    assert logs.steps() == [1, 4]


def test_going_back_cuts_off_a_line_that_is_being_written(logs, monkeypatch):
    real, is_writing, goes_on = Disk.append, threading.Event(), threading.Event()

    def slow(self, line):
        if b"2" in line:
            is_writing.set()
            goes_on.wait(30)
        real(self, line)

    monkeypatch.setattr(Disk, "append", slow)
    length = logs.write(1)
    logs.write(2)
    assert is_writing.wait(30)
    going_back = begin(logs.writer.go_back, length, 1)
    going_back.join(0.1)
    goes_on.set()
    going_back.join(30)
    logs.write(3)
    logs.close()
    assert logs.steps() == [1, 3]


def test_flushed_lines_are_on_the_disk(logs, monkeypatch):
    real, synced = Disk.append, []

    def slow(self, line):
        time.sleep(0.05)
        real(self, line)

    monkeypatch.setattr(Disk, "append", slow)
    monkeypatch.setattr("os.fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_size))
    in_time(logs.writer.flush, logs.write(1, 2))
    assert synced == [logs.writer.length]
    logs.close()
