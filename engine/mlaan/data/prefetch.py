"""The next batch is made ready on a GPU while the step of this one runs."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, Protocol, TypeVar

import torch

from mlaan.data.dataset import Batch

T = TypeVar("T")


class Side(Protocol):
    """Where batches are made ready, beside the stream that uses them."""

    def start(self, work: Callable[[], Batch]) -> Any:
        """Begins `work` there and waits for nothing; gives what `take` is called with."""
        ...

    def take(self, started: Any) -> Batch:
        """The batch, which the using stream may read from now on."""
        ...


class SideStream:
    """A CUDA stream beside the present one.

    What is made there waits for nothing of the steps: all its memory comes from its own stream's pool. The using stream
    waits for the event after it, and the memory goes back only once that stream has done with it.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)
        self._stream.wait_stream(torch.cuda.current_stream(device))  # what is read there was made here

    def start(self, work: Callable[[], Batch]) -> tuple[Batch, torch.cuda.Event]:
        with torch.cuda.stream(self._stream):
            batch = work()
            done = torch.cuda.Event()
            done.record(self._stream)
        return batch, done

    def take(self, started: tuple[Batch, torch.cuda.Event]) -> Batch:
        batch, done = started
        user = torch.cuda.current_stream(self._stream.device)
        user.wait_event(done)
        for tensor in batch:
            tensor.record_stream(user)
        return batch


def ahead(items: Iterable[T | None], prepare: Callable[[T], Batch], side: Side | None) -> Iterator[Batch | None]:
    """`prepare` of every item, in order; with a side, each is begun there before the one before it is given.

    None stays None.
    """
    if side is None:
        yield from (None if item is None else prepare(item) for item in items)
        return
    begun = (None if item is None else side.start(partial(prepare, item)) for item in items)
    for started in _one_ahead(begun):
        yield None if started is None else side.take(started)


def _one_ahead(items: Iterable[T]) -> Iterator[T]:
    """The same, each asked for before the one before it is given; an error comes after all that came before it."""
    waiting: list[T] = []
    try:
        for item in items:
            waiting.append(item)
            if len(waiting) > 1:
                yield waiting.pop(0)
    except Exception:
        yield from waiting
        raise
    yield from waiting
