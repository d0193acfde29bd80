"""Worker processes that go through image files in order, and a file that kills one of them is no end."""

import os
import signal
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing import get_context, parent_process
from threading import Thread
from typing import TypeVar

import torch

_CHUNK = 32

Result = TypeVar("Result")


def in_order(
    work: Callable[[str], Result], died: Result, paths: Iterable[str], workers: int
) -> Generator[Result, None, None]:
    """work(path) of each path, in order, and `died` for one that its process died of; some are worked on ahead."""
    rest = iter(paths)
    chunks = iter(lambda: list(islice(rest, _CHUNK)), [])
    while True:
        running: deque[list[str]] = deque()
        futures: deque[Future[list[Result]]] = deque()
        with _pool(workers) as pool:
            try:
                while True:
                    for chunk in islice(chunks, 4 * workers - len(running)):
                        running.append(chunk)
                        futures.append(pool.submit(_work_through, work, chunk))
                    if not running:
                        return
                    results = futures.popleft().result()
                    running.popleft()
                    yield from results
            except BrokenProcessPool:  # what ran is lost, and one of these files is to blame
                pass
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        for chunk in running:
            yield from _alone(work, died, chunk)


def _alone(work: Callable[[str], Result], died: Result, chunk: Sequence[str]) -> Iterator[Result]:
    """A chunk in a process of its own; where that dies, in halves, down to the file that it dies of."""
    with _pool(1) as pool:
        try:
            results = pool.submit(_work_through, work, chunk).result()
        except BrokenProcessPool:
            results = None
    if results is not None:
        yield from results
    elif len(chunk) == 1:
        yield died
    else:
        middle = len(chunk) // 2
        yield from _alone(work, died, chunk[:middle])
        yield from _alone(work, died, chunk[middle:])


def _work_through(work: Callable[[str], Result], chunk: Sequence[str]) -> list[Result]:
    return [work(path) for path in chunk]


def _pool(workers: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(workers, mp_context=get_context("fork"), initializer=_begin)


def _begin() -> None:
    """A worker's first act. Ctrl-C reaches all processes at once, but the one that asked ends its workers itself."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    Thread(target=_end_with_the_parent, daemon=True).start()


def _end_with_the_parent() -> None:
    """Each worker holds the pipes of the others open: no work that comes would not tell it that the parent is gone."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
