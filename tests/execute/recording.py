"""Fakes of CUDA streams, events and graphs, for a machine without a GPU.

They run every operator at once on the CPU, and watch under a TorchDispatchMode what a device would have made of it:
`RecordingLanes` is a race detector for streams, `RecordingGraph` a tape that replays as a CUDA graph does. What both
cannot see is what runs inside one operator. Storages are taken whole: two lanes that write two parts of one storage
count as a race.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, partial
from typing import Any, NamedTuple, TypeVar
from weakref import ref

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

T = TypeVar("T")
Event = tuple[int, ...]
READS_BACK = (Tensor.tolist, Tensor.numpy, Tensor.__array__, Tensor.cpu)
"""Ways to the host that are no operators."""


class Use(NamedTuple):
    """An operator that read or wrote a storage: its name, its lane, and which of that lane's operators it was."""

    operator: str
    lane: int
    time: int


class Cell:
    """What is known of one storage: whose pool it is of, its last write, and each lane's last read since."""

    def __init__(self, home: int, tensor: Tensor) -> None:
        self.home, self.shape = home, tuple(tensor.shape)
        self.write: Use | None = None
        self.reads: dict[int, Use] = {}
        self.alive: object = None  # the weak reference that tells of its end

    def uses(self) -> list[Use]:
        return [*([self.write] if self.write else []), *self.reads.values()]


class RecordingLanes(TorchDispatchMode):
    """Lanes (streams) that find what would be a race on a device, with a vector clock for each lane.

        with RecordingLanes(2) as lanes:
            executor.run(images, labels)
        lanes.check()

    An operator of autograd's backward runs, as on a device, on the lane that its forward ran on (before entering: lane
    0); autograd makes that lane wait for the caller's, and the caller's for it at the end. A storage belongs to the
    pool of the lane that it was allocated on, and what was there before entering to lane 0. When its last reference
    goes, the next operator of that lane may be given its block, and has to come after all that used it. The fake may
    be entered several times.

    Inside a `RecordingGraph` the tape keeps every tensor, so that nothing is freed: look for reuse without one.

    Args:
        count: number of lanes; lane 0 is the caller's.

    Attributes:
        violations: what is wrong, in words, each once.
        lanes_used: number of operators on each lane; views and bare allocations run nothing and do not count.
        overlaps: number of operators that some earlier one of another lane may run beside.
    """

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count, self.present = count, 0
        self.clocks = [[0] * count for _ in range(count)]
        self.latest: list[Use | None] = [None] * count
        self.lanes_used, self.overlaps = [0] * count, 0
        self.violations: dict[str, None] = {}
        self.cells: dict[int, Cell] = {}
        self.freed: list[list[Cell]] = [[] for _ in range(count)]  # storages of each lane's pool that have ended
        self.forward_lanes: dict[int, int] = {}  # of autograd's nodes, by their sequence number
        self.backward_lanes: list[int] = []  # those of the backward that is running, the present one last

    def __enter__(self) -> "RecordingLanes":
        self.forward_lanes.setdefault(_newest_node(), 0)
        super().__enter__()
        return self

    @contextmanager
    def on(self, lane: int) -> Iterator[None]:
        """Operators inside go to `lane`."""
        self._end_backward()
        before, self.present = self.present, range(self.count)[lane]
        try:
            yield
        finally:
            self._end_backward()
            self.present = before

    def record(self, lane: int) -> object:
        """An event after all that was issued to `lane` so far."""
        self._end_backward()
        return tuple(self.clocks[lane])

    def wait(self, lane: int, event: object) -> None:
        """Later work of `lane` starts after the event."""
        self._end_backward()
        assert isinstance(event, tuple)
        self._join(lane, event)

    def check(self) -> None:
        """Raises AssertionError that lists all violations, and the lanes that lane 0 has not waited for."""
        self._end_backward()
        found = list(self.violations)
        for use in self.latest:
            if use and self._unordered(0, use):
                found.append(f"lane 0 has not waited for lane {use.lane}, whose last operator is {use.operator}")
        if found:
            raise AssertionError(f"{len(found)} violations:\n" + "\n".join(found))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        lane = self._lane()
        name, is_empty = str(func), _is_empty(func)
        read, written = _effects(func, args, kwargs)
        inputs = [*read, *written]
        for tensor in inputs:  # one never seen was there before, or Python made it out of its numbers just now
            self._watch(tensor, lane if "lift" in name else 0)
        known = _keys(inputs)
        out = func(*args, **kwargs)
        fresh = _fresh(_tensors(out), known)
        if not (written or fresh):
            return out  # a view
        self._allocate(lane, name)
        self.clocks[lane][lane] += 1
        now = Use(name, lane, self.clocks[lane][lane])
        if not is_empty:
            self.lanes_used[lane] += 1
            self.latest[lane] = now
            self.overlaps += any(use and self._unordered(lane, use) for use in self.latest)
        for tensor in fresh:
            self._watch(tensor, lane)
        for key in _keys(fresh) | _keys(written):
            self._write(self.cells[key], now)
        if not _reads_shape_alone(func):
            for key in _keys(read) - _keys(written):
                self._read(self.cells[key], now)
        return out

    def _lane(self) -> int:
        """The lane of an operator that comes now."""
        node = _current_node()
        if node is None:
            self._end_backward()
            self.forward_lanes.setdefault(_newest_node(), self.present)
            return self.present
        last = self.backward_lanes[-1] if self.backward_lanes else self.present
        lane = self.forward_lanes.get(node._sequence_nr(), 0)
        self._join(lane, self.clocks[last])
        if lane != last or not self.backward_lanes:
            self.backward_lanes.append(lane)
        return lane

    def _end_backward(self) -> None:
        """The caller's lane waits for those of a backward that has ended."""
        if _current_node() is None:
            for lane in self.backward_lanes:
                self._join(self.present, self.clocks[lane])
            self.backward_lanes.clear()

    def _join(self, lane: int, clock: Event | list[int]) -> None:
        self.clocks[lane] = [max(own, other) for own, other in zip(self.clocks[lane], clock, strict=True)]

    def _watch(self, tensor: Tensor, home: int) -> None:
        for key in _keys([tensor]) - self.cells.keys():
            cell = self.cells[key] = Cell(home, tensor)
            cell.alive = ref(tensor.untyped_storage(), partial(self._freed, key))

    def _read(self, cell: Cell, now: Use) -> None:
        if cell.write and self._unordered(now.lane, cell.write):
            self._complain(now, "reads", cell, cell.write, "writes")
        cell.reads[now.lane] = now

    def _write(self, cell: Cell, now: Use) -> None:
        for use in cell.uses():
            if self._unordered(now.lane, use):
                self._complain(now, "writes", cell, use, "writes" if use is cell.write else "reads")
        cell.write = now
        cell.reads.clear()

    def _freed(self, key: int, _: object) -> None:
        self._end_backward()
        cell = self.cells.pop(key)
        self.freed[cell.home].append(cell)

    def _allocate(self, lane: int, operator: str) -> None:
        """An operator may get any block that its lane's pool has back, as its output or to work in."""
        for cell in self.freed[lane]:
            for use in cell.uses():
                if self._unordered(lane, use):
                    self.violations[
                        f"{operator} on lane {lane} may be given the block of a storage of shape {cell.shape} that was "
                        f"freed while lane {use.lane} may still use it in {use.operator}: lane {lane} has not waited"
                    ] = None
        self.freed[lane].clear()

    def _unordered(self, lane: int, use: Use) -> bool:
        return self.clocks[lane][use.lane] < use.time

    def _complain(self, now: Use, does: str, cell: Cell, use: Use, did: str) -> None:
        self.violations[
            f"{now.operator} on lane {now.lane} {does} a storage of shape {cell.shape} that {use.operator} on lane "
            f"{use.lane} {did}: lane {now.lane} has not waited"
        ] = None


class Step(NamedTuple):
    """A recorded operator, and the tensors that its outputs lie in."""

    func: Any
    args: Any
    kwargs: Any
    outputs: list[Tensor]


class RecordingGraph:
    """Capture and replay of a whole step, as a CUDA graph does it: what Python computed is frozen, tensors are read
    anew, random operators draw anew.

    All tensors of a capture stay alive in the replay (the graph's private memory).
    """

    def capture(self, run: Callable[[], T]) -> tuple[T, Callable[[], None]]:
        """Record what `run` does.

        Weights, statistics and the random state are afterwards as before, and what the tensors hold that were made
        inside is garbage (NaN, or the greatest integer) until the first replay.

        Returns:
            What `run` returned, and the replay; it writes into these tensors.

        Raises:
            RuntimeError: `run` reads a value back from the device, or a shape depends on one.
        """
        tape = _Tape()
        random = torch.get_rng_state()
        try:
            with _HostReads(), tape:
                result = run()
        finally:
            torch.set_rng_state(random)
            tape.restore()
        return result, tape.replay


class _Tape(TorchDispatchMode):
    """Records operators with their tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[Step] = []
        self.made: list[Tensor] = []
        self.born: set[int] = set()
        self.before: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        read, written = _effects(func, args, kwargs)
        inputs = _keys([*read, *written])
        if _needs_the_host(func, args) or ("lift" in str(func) and not inputs <= self.born):
            raise RuntimeError(f"operation not permitted when stream is capturing: {func}")
        with _disable_current_modes():
            for tensor in written:
                for key in _keys([tensor]) - self.born - self.before.keys():
                    storage = tensor.untyped_storage()
                    self.before[key] = storage, storage.clone()
        out = func(*args, **kwargs)
        with _disable_current_modes():
            # aliases without autograd's graph, which may go when the step lets go of it
            kept, named = _aliases(args), {name: _aliases(value) for name, value in kwargs.items()}
            outputs = _aliases(_tensors(out))
        fresh = _fresh(outputs, inputs)
        self.made += fresh
        self.born |= _keys(fresh)
        if (written or fresh) and not _is_empty(func):
            self.steps.append(Step(func, kept, named, outputs))
        return out

    def restore(self) -> None:
        """A capture executes nothing."""
        with _disable_current_modes():
            for storage, values in self.before.values():
                storage.copy_(values)
            self.before.clear()
            for tensor in self.made:
                if tensor.is_floating_point() or tensor.is_complex():
                    tensor.fill_(torch.nan)
                elif tensor.dtype != torch.bool:
                    tensor.fill_(torch.iinfo(tensor.dtype).max)

    def replay(self) -> None:
        """Run all operators again on the same storages."""
        for step in self.steps:
            for kept, new in zip(step.outputs, _tensors(step.func(*step.args, **step.kwargs)), strict=True):
                if _keys([kept]) != _keys([new]):
                    kept.copy_(new)


class _HostReads(TorchFunctionMode):
    """Refuses what brings values to the host without an operator."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in READS_BACK:
            raise RuntimeError(f"operation not permitted when stream is capturing: {func.__name__}")
        return func(*args, **(kwargs or {}))


def _effects(func: Any, args: Any, kwargs: Mapping[str, Any]) -> tuple[list[Tensor], list[Tensor]]:
    """The tensors that an operator reads, and those that it writes and perhaps reads."""
    marks = _marks(func)
    given = {**dict(zip(marks, args, strict=False)), **kwargs}
    marks = {**marks, **_statistics(func, given)}
    read = [tensor for name, value in given.items() if marks[name] is False for tensor in _tensors(value)]
    return read, [tensor for name, value in given.items() if marks[name] for tensor in _tensors(value)]


def _statistics(func: Any, given: Mapping[str, Any]) -> dict[str, bool | None]:
    """A training BatchNorm moves its running statistics, also where the schema lacks the mark; its backward (None)
    leaves them alone."""
    name = func._schema.name
    if "batch_norm" not in name or "functional" in name or not given.get("training", given.get("train", False)):
        return {}
    return dict.fromkeys(("running_mean", "running_var"), None if "backward" in name else True)


@cache
def _marks(func: Any) -> dict[str, bool | None]:
    """By the schema, for each argument in order whether it is written."""
    return {each.name: bool(each.alias_info and each.alias_info.is_write) for each in func._schema.arguments}


@cache
def _is_empty(func: Any) -> bool:
    """Whether an operator only allocates."""
    return func._schema.name.split("::")[1].removeprefix("new_").startswith("empty")


@cache
def _reads_shape_alone(func: Any) -> bool:
    name = func._schema.name.split("::")[1]
    return name.startswith("new_") or name.endswith("_like")


def _needs_the_host(func: Any, args: Any) -> bool:
    """Whether an operator has to wait for values to know what to return."""
    if func._schema.name in ("aten::index", "aten::index_put", "aten::index_put_", "aten::_unsafe_index"):
        return any(index.dtype in (torch.bool, torch.uint8) for index in _tensors(args[1]))
    return torch.Tag.data_dependent_output in func.tags or torch.Tag.dynamic_output_shape in func.tags


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [tensor for part in value for tensor in _tensors(part)] if isinstance(value, (list, tuple)) else []


def _aliases(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach()
    return [_aliases(part) for part in value] if isinstance(value, (list, tuple)) else value


def _keys(tensors: Iterable[Tensor]) -> set[int]:
    """The storages' identities while they live; none for one that holds nothing."""
    storages = [tensor.untyped_storage() for tensor in tensors if tensor.device.type != "meta"]
    return {storage._cdata for storage in storages if storage.nbytes()}


def _fresh(outputs: Iterable[Tensor], inputs: set[int]) -> list[Tensor]:
    """The outputs that lie in storages of their own."""
    return [tensor for tensor in outputs if _keys([tensor]) - inputs]


def _current_node() -> Any:
    """The node of autograd's graph whose backward is running, if one is."""
    return torch._C._current_autograd_node()


def _newest_node() -> int:
    """The sequence number of the node made last: that of the operator whose forward comes now, if it has one."""
    return torch._C._autograd._get_sequence_nr() - 1  # pyright: ignore[reportAttributeAccessIssue]
