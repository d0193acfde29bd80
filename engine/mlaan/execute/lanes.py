"""CUDA streams behind an interface, and what must be kept while they run beside each other."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor

from mlaan.plan.lanes import LanePlan


class Lanes(Protocol):
    """Streams of a device, numbered; lane 0 is the one that the caller is on."""

    @property
    def count(self) -> int: ...

    def on(self, lane: int) -> AbstractContextManager[Any]:
        """A context whose operators go to that lane."""
        ...

    def record(self, lane: int) -> Any:
        """An event after all that was given to the lane so far."""
        ...

    def wait(self, lane: int, event: Any) -> None:
        """Let what is given to the lane from now on start after the event."""
        ...


class CudaLanes:
    """Streams of a CUDA device.

    Args:
        urgent: for each lane whether its kernels go before others' that wait for a multiprocessor; lane 0 stays what
            the caller's stream is.
    """

    def __init__(self, device: torch.device, urgent: Sequence[bool]) -> None:
        self.device, self.count = device, len(urgent)
        self.side = [torch.cuda.Stream(device, priority=-1 if first else 0) for first in urgent[1:]]

    def on(self, lane: int) -> AbstractContextManager[Any]:
        return torch.cuda.stream(self.side[lane - 1]) if lane else nullcontext()

    def record(self, lane: int) -> Any:
        return self._stream(lane).record_event()

    def wait(self, lane: int, event: Any) -> None:
        self._stream(lane).wait_event(event)

    def _stream(self, lane: int) -> torch.cuda.Stream:
        return self.side[lane - 1] if lane else torch.cuda.current_stream(self.device)


class Crossing:
    """One step's way over several lanes.

    Keeps the events that later steps wait for, and every tensor that a lane uses though another one made it: its memory
    goes back to the lane that made it as soon as nobody holds it, without a look at what other lanes still do. So it is
    held until the lane that made it has itself waited for a later event of the lane that used it.

    Args:
        plan: where each step runs, and what it waits for.
    """

    def __init__(self, lanes: Lanes, plan: LanePlan) -> None:
        self.lanes, self.plan = lanes, plan
        self.awaited = {need for waits in plan.waits for need in waits}
        self.events: dict[int, Any] = {}
        # For each lane the number of the last thing of every other lane that is over before what it gets next.
        self.known = [[-1] * lanes.count for _ in range(lanes.count)]
        self.known_at: dict[int, list[int]] = {}
        self.maker: dict[int, int] = {}
        self.held: list[list[tuple[int, int, Tensor]]] = [[] for _ in range(lanes.count)]
        self._meet([0], range(1, lanes.count))

    @contextmanager
    def step(self, place: int, tensors: Iterable[Tensor]) -> Iterator[None]:
        """The context of one step of the plan.

        Args:
            tensors: gives, each time it is gone through, what the step reads or leaves behind, as far as it is there.
        """
        lane = self.plan.lane[place]
        for need in self.plan.waits[place]:
            self.lanes.wait(lane, self.events[need])
            self._learn(lane, self.known_at[need])
        before = list(tensors)
        for tensor in before:
            maker = self.maker.get(_storage(tensor), 0)
            if maker != lane:
                self.held[maker].append((lane, place, tensor))
        with self.lanes.on(lane):
            yield
        seen = {_storage(tensor) for tensor in before}
        self.maker |= {_storage(tensor): lane for tensor in tensors if _storage(tensor) not in seen}
        self.known[lane][lane] = place
        if place in self.awaited:
            self.events[place] = self.lanes.record(lane)
            self.known_at[place] = list(self.known[lane])

    def join(self) -> None:
        """Let lane 0 go on after all others."""
        self._meet(range(1, self.lanes.count), [0])

    def close(self) -> None:
        """Let all lanes go on after each other: whatever is let go of now, nobody uses any more."""
        self.join()
        self._meet([0], range(1, self.lanes.count))
        self.join()

    def _meet(self, first: Iterable[int], then: Iterable[int]) -> None:
        then = list(then)
        for one in first:
            event = self.lanes.record(one)
            for other in then:
                self.lanes.wait(other, event)
                self._learn(other, self.known[one])

    def _learn(self, lane: int, known: Sequence[int]) -> None:
        self.known[lane] = [max(pair) for pair in zip(self.known[lane], known, strict=True)]
        self.held[lane] = [held for held in self.held[lane] if held[1] > self.known[lane][held[0]]]


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
