"""The processes that read images: signals, those that die or are killed, errors in them, none that is left over."""

import multiprocessing
import os
import select
import signal
import subprocess
import time
import traceback

import pytest
from torch.utils.data import dataloader

from data.batches import same, take
from data.view_loader_cases import Faulty, files, make, whole
from mlaan.data import workers
from mlaan.errors import UserError

__all__ = ["files", "whole"]


@pytest.fixture
def impatient(monkeypatch):
    """Asks every fifth of a second whether a worker died, not every five."""
    monkeypatch.setattr(dataloader._MultiProcessingDataLoaderIter._try_get_data, "__defaults__", (0.2,))


@pytest.fixture(params=["fork", "forkserver"])
def start_method(request):
    """How worker processes are started; only by fork they begin with the signals held that their parent holds."""
    multiprocessing.set_forkserver_preload(["torchvision.io", "torchvision.transforms.v2"])  # once for all workers
    multiprocessing.set_start_method(request.param, force=True)
    yield request.param
    multiprocessing.set_start_method(None, force=True)


@pytest.fixture
def usual_signals():
    """What a signal does to a process unless it is told otherwise: tests in the background may inherit deaf ears."""
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}
    before = {name: signal.signal(name, handler) for name, handler in usual.items()}
    yield
    for name, handler in before.items():
        signal.signal(name, handler)


def test_signals_to_all_processes_leave_the_workers_at_work(files, usual_signals, start_method, impatient):
    alone = list(make(files, batch=1))
    loader, said = make(files, workers=2, batch=1), []
    loader.say = said.append
    batches = iter(loader)
    taken = [next(batches), next(batches)]  # one by each: both have made up their minds
    children = multiprocessing.active_children()
    assert len(children) == 2
    for name in "INT", "HUP", "TERM":
        for worker in children:
            subprocess.run(["kill", f"-{name}", str(worker.pid)], check=True)
        taken.append(next(batches))
        assert all(worker.is_alive() for worker in children)
    taken += batches
    assert same(taken, alone)
    assert said == []


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_reaches_no_worker_before_it_is_ready(files, name, monkeypatch, tmp_path):
    """Sent to each worker at the very moment at which it begins."""
    ready = workers._obey_the_parent_alone

    def late(worker: int) -> None:
        os.kill(os.getpid(), getattr(signal, name))
        ready(worker)
        (tmp_path / str(worker)).touch()

    monkeypatch.setattr(workers, "_obey_the_parent_alone", late)
    assert same(list(make(files, workers=2, batch=1)), list(make(files, batch=1)))
    assert {path.name for path in tmp_path.iterdir()} == {"0", "1"}


def test_the_training_process_ends_its_workers(files, start_method):
    """As Python does at its exit with every worker that is left."""
    batches = iter(make(files, workers=2))
    next(batches), next(batches)
    children = multiprocessing.active_children()
    assert len(children) == 2
    for worker in children:
        worker.terminate()
        worker.join(20)
        assert worker.exitcode == 0


def test_no_worker_outlives_a_training_process_that_is_killed(monkeypatch):
    """PyTorch looks at the process that forked the worker, which may be a server."""
    monkeypatch.setattr(workers, "_GLANCE", 0.05)
    fork = multiprocessing.get_context("fork")
    reader, writer = os.pipe()  # it is at its end once no process is left that has its other one

    def work():
        workers._obey_the_parent_alone(0)
        os.write(writer, b".")
        time.sleep(30)

    def train():
        worker = fork.Process(target=work)
        worker.start()
        worker.join()

    training = fork.Process(target=train)
    training.start()
    os.close(writer)
    assert os.read(reader, 1) == b"."
    training.kill()
    training.join()
    ended, _, _ = select.select([reader], [], [], 20)
    os.close(reader)
    assert ended


def test_no_worker_outlives_a_loop_that_is_left(files):
    for _ in make(files, workers=2):
        assert len(multiprocessing.active_children()) == 2
        break
    else:
        pytest.fail("no batch")
    assert multiprocessing.active_children() == []


def test_after_a_worker_is_killed_others_give_the_same_bits(files, whole, tmp_path, impatient):
    killed = tmp_path / "killed"

    def die():
        if not killed.exists():
            killed.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    loader = make(Faulty(files, {int(whole[7].labels[1]): die}), workers=2)
    said = []
    loader.say = said.append
    assert same(take(loader, 12), whole)
    assert killed.exists()
    assert said == ["a process that reads images was killed (SIGKILL); others read that batch again"]
    assert multiprocessing.active_children() == []


def test_a_worker_that_is_killed_while_nobody_waits_does_not_disturb_the_step(files, whole, impatient):
    loader = make(files, workers=2)
    said = []
    loader.say = said.append
    batches = iter(loader)
    taken = [next(batches)]
    children = multiprocessing.active_children()
    assert len(children) == 2
    for worker in children:
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGKILL)
        worker.join()  # a step during which the death is told: by the system's signal to this process
    taken += batches
    assert same(taken, whole[:5])
    assert len(said) <= 1  # none where all batches had been handed over


def test_a_worker_that_is_killed_twice_at_a_batch_ends_the_run(files, impatient):
    loader = make(Faulty(files, {9: lambda: os._exit(7)}), training=False, workers=1)
    said = []
    loader.say = said.append
    with pytest.raises(UserError) as caught:
        list(loader)
    assert len(said) in (1, 2), "once for the batch it died at, perhaps once before at one that was not handed over"
    assert str(caught.value).startswith(
        "data.workers = 1: a process that reads images was killed twice at one batch (exit status 7): set data.workers"
    )


def test_an_error_in_a_worker_is_not_taken_for_its_death(files):
    def fail():
        raise RuntimeError("a mistake in the DataLoader worker (pid 3)")

    with pytest.raises(RuntimeError, match="a mistake in the") as caught:
        list(make(Faulty(files, {3: fail}), training=False, workers=1))
    traceback.clear_frames(caught.tb)  # PyTorch's are in a cycle with the error: the worker would outlive this test
    assert multiprocessing.active_children() == []
