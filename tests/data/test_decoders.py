"""Worker processes over files: each in its order and once, whatever a file or a signal does to a process."""

import multiprocessing
import os
import select
import signal
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from threading import Thread

import pytest

from mlaan.data import decoders
from mlaan.data.decoders import in_order

COUNT = 330
"""Of made-up paths, which are numbers: eleven chunks."""

FAULTS = {}
"""{number: what happens first where it is due}; workers inherit it."""


def numbered(path):
    FAULTS.get(int(path), lambda: None)()
    return int(path)


@pytest.fixture(autouse=True)
def faultless():
    FAULTS.clear()
    yield
    FAULTS.clear()


def worked(workers, count=COUNT):
    return list(in_order(numbered, -1, map(str, range(count)), workers))


@pytest.mark.parametrize("count", [0, 1, 31, 32, 33, COUNT])
@pytest.mark.parametrize("workers", [1, 3])
def test_every_file_has_its_own_result_in_its_place(count, workers):
    assert worked(workers, count) == list(range(count))


def leave():
    os._exit(0)


def die():
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("end", [leave, die])
def test_files_that_end_their_process_are_found_and_all_others_get_their_result(workers, end):
    bad = (0, 40, 41, COUNT - 1)
    FAULTS.update(dict.fromkeys(bad, end))
    assert worked(workers) == [-1 if number in bad else number for number in range(COUNT)]


def test_after_a_crash_only_what_ran_with_it_is_done_file_by_file(monkeypatch):
    """Else a set of a million, with one such file, would be left to a single process."""
    FAULTS[5] = leave
    alone, real = set(), decoders._alone

    def recording(work, died, chunk):
        alone.update(map(int, chunk))
        return real(work, died, chunk)

    monkeypatch.setattr(decoders, "_alone", recording)
    worked(1)
    assert {*range(32)} <= alone <= {*range(4 * 32)}


def test_what_a_broken_pool_does_not_take_is_not_lost(monkeypatch):
    """A process may die between two of its tasks: then handing over the next one fails."""
    given = []

    class Breaking(ProcessPoolExecutor):
        def submit(self, *arguments, **keywords):
            given.append(1)
            if len(given) in (3, 9):
                raise BrokenProcessPool
            return super().submit(*arguments, **keywords)

    monkeypatch.setattr(decoders, "ProcessPoolExecutor", Breaking)
    assert worked(1) == list(range(COUNT))
    assert len(given) > 9


def test_no_more_is_read_ahead_than_the_workers_need():
    asked = []
    results = in_order(numbered, -1, (asked.append(number) or str(number) for number in range(COUNT)), 1)
    assert next(results) == 0
    assert len(asked) == 4 * 32


def test_what_goes_wrong_with_the_work_itself_is_raised():
    def fail():
        raise LookupError("no such thing")

    FAULTS[40] = fail
    with pytest.raises(LookupError, match="no such thing"):
        worked(2)
    assert not multiprocessing.active_children()


def test_a_worker_leaves_ctrl_c_to_the_process_that_asked(capfd):
    """A terminal sends it to all of them."""
    FAULTS[3] = lambda: os.kill(os.getpid(), signal.SIGINT)
    assert worked(2) == list(range(COUNT))
    assert capfd.readouterr().err == ""


def test_whoever_leaves_waits_only_for_what_is_being_done(tmp_path, monkeypatch):
    done, leaving, given = tmp_path / "done", tmp_path / "leaving", []

    class Remembering(ProcessPoolExecutor):
        def submit(self, *arguments, **keywords):
            given.append(super().submit(*arguments, **keywords))
            return given[-1]

    def late():
        while not leaving.exists():
            time.sleep(0.01)
        with done.open("ab") as file:
            file.write(b".")

    def release():
        """Once the last that was handed over is called off, or some seconds later."""
        deadline = time.monotonic() + 5
        while not given[-1].cancelled() and time.monotonic() < deadline:
            time.sleep(0.01)
        leaving.touch()

    monkeypatch.setattr(decoders, "ProcessPoolExecutor", Remembering)
    FAULTS.update(dict.fromkeys(range(32, 640), late))
    results = in_order(numbered, -1, map(str, range(640)), 4)
    assert list(islice(results, 5)) == [0, 1, 2, 3, 4]
    assert len(given) == 16
    Thread(target=release).start()
    results.close()
    assert not multiprocessing.active_children()
    assert 4 * 32 <= done.stat().st_size <= 9 * 32, "those at work and what a pool hands them beforehand, of 15"


def test_no_worker_outlives_a_process_that_is_killed():
    reader, writer = os.pipe()  # it is at its end once no process is left that has its other one
    FAULTS.update(dict.fromkeys(range(0, COUNT, 32), lambda: os.write(writer, b".") and time.sleep(30)))
    parent = multiprocessing.get_context("fork").Process(target=lambda: worked(3))
    parent.start()
    os.close(writer)
    assert [os.read(reader, 1) for _ in range(3)] == [b"."] * 3, "each is at work"
    parent.kill()
    parent.join()
    assert parent.exitcode == -signal.SIGKILL
    ended, _, _ = select.select([reader], [], [], 20)
    assert ended
    assert os.read(reader, 1) == b""
    os.close(reader)
