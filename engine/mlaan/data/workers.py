"""Worker processes that obey the training process alone, and whose end it survives."""

import multiprocessing
import os
import signal
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from threading import Thread, current_thread, main_thread
from typing import Any

from torch.utils import data

_PATIENCE = 0.2
"""Seconds that a process that was killed may take to be seen as dead after its pipes broke."""
_GLANCE = 5.0
"""Seconds after which a worker looks whether its training process is still there."""


class Killed(Exception):
    """A worker ended that should not have: its exit status, or the signal it got."""


def read_in_workers(reader: data.DataLoader[Any]) -> Iterator[Any]:
    """What a DataLoader gives. With the generator its workers end.

    Raises:
        Killed: a worker was killed; what was not given by then is lost.
    """
    before = set(multiprocessing.active_children())
    # PyTorch raises an error, wherever the training process is, as soon as a worker dies. A step should not end so:
    # with the former handler, who asks for the next batch finds out, within seconds.
    handler = signal.getsignal(signal.SIGCHLD)
    batches = _started(reader)
    if current_thread() is main_thread():
        signal.signal(signal.SIGCHLD, handler)
    workers = set(multiprocessing.active_children()) - before
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except (RuntimeError, OSError, EOFError):
            if dead := [worker for worker in workers if _is_dead(worker)]:
                raise Killed(_how(dead[0])) from None
            raise
        yield batch


def _is_dead(worker: BaseProcess) -> bool:
    worker.join(_PATIENCE)
    return worker.exitcode is not None


def _how(worker: BaseProcess) -> str:
    code = worker.exitcode or 0
    return signal.Signals(-code).name if code < 0 else f"exit status {code}"


def _started(reader: data.DataLoader[Any]) -> Iterator[Any]:
    """Starts the workers with Ctrl-C and SIGTERM held, until each has made up its mind about them."""
    reader.worker_init_fn = _obey_the_parent_alone
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        return iter(reader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _obey_the_parent_alone(worker: int) -> None:
    """A stop, by Ctrl-C, a closed terminal or a cluster's SIGTERM, reaches all processes at once, but the training
    process still finishes its step: it decides, and ends its workers itself."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # a server that forks the workers passes no mask on
    Thread(target=_wait_for_the_parents_signal, daemon=True).start()


def _wait_for_the_parents_signal() -> None:
    """Ends the worker with it, or when the training process was killed."""
    parent = multiprocessing.parent_process()  # the training process, also where a server forks the workers
    assert parent is not None
    while parent.is_alive():
        told = signal.sigtimedwait({signal.SIGTERM}, _GLANCE)
        if told and told.si_pid == parent.pid:
            break
    os._exit(0)
