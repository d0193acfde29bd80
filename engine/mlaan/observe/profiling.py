"""Training steps measured task by task with torch.profiler: when each task ran, on which lane, and the memory alive."""

import gc
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile, record_function

from mlaan.engine import Engine
from mlaan.errors import UserError
from mlaan.execute import EagerExecutor, GraphExecutor
from mlaan.observe.records import STEP, plain, timelines
from mlaan.plan import Step
from mlaan.plan.timeline import Timeline, step_name


@dataclass(frozen=True)
class Profile:
    """Measured steps.

    Attributes:
        steps: their timelines.
        seconds: how long each took as a whole, under the profiler.
        bare_seconds: median of as many steps without the profiler.
        base_bytes: what was allocated before a step: weights, twins, momenta, buffers and the batch.
    """

    steps: tuple[Timeline, ...]
    seconds: tuple[float, ...]
    bare_seconds: float
    base_bytes: int

    @property
    def median(self) -> int:
        """The place of the step of median length; of an even number, the shorter of the middle two."""
        return self.seconds.index(statistics.median_low(self.seconds))


def measure(engine: Engine, images: Tensor, labels: Tensor, *, steps: int = 3, warmup: int = 2) -> Profile:
    """Train `warmup` steps unseen, `steps` with a clock alone and `steps` under the profiler, all on one batch.

    Every task is a range of its own name, also for NVTX on a GPU, where nsys shows it. On a CPU a task's time is the
    host's; on a GPU it is that of its kernels, from the first one's start to the last one's end, for each stream.

    Args:
        images, labels: as for `Engine.step`, on the engine's device.

    Raises:
        UserError: the engine replays whole steps, or the profiler sees nothing of the GPU.
    """
    if isinstance(engine.executor, GraphExecutor):
        raise UserError("train.executor = 'graph' runs a step as one piece: set train.executor = 'streams' or 'eager'")
    cuda = engine.device.type == "cuda"
    os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # or it complains on stderr where there is no GPU
    for _ in range(warmup):
        engine.step(images, labels)
    bare = [_seconds(lambda: engine.step(images, labels), engine.device) for _ in range(steps)]
    gc.collect()
    base = torch.cuda.memory_allocated(engine.device) if cuda else _held(engine, [images, labels])
    planned: dict[str, Step] = {}
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with (
        _watched(engine.executor, planned, cuda),
        profile(activities=activities, profile_memory=True, acc_events=True) as profiler,
    ):
        for _ in range(steps):
            with record_function(STEP):
                engine.step(images, labels)
                _wait(engine.device)
    assert profiler.profiler is not None
    results: Any = profiler.profiler.kineto_results
    found = timelines([plain(event) for event in results.events()], planned, base, on_gpu=cuda)
    if not all(timeline.spans for timeline, _ in found):
        raise UserError("the profiler saw no kernels: may this user read the GPU's counters, and is CUPTI installed?")
    spans, seconds = zip(*found, strict=True)
    return Profile(spans, seconds, statistics.median(bare), base)


@contextmanager
def _watched(executor: EagerExecutor, planned: dict[str, Step], cuda: bool) -> Iterator[None]:
    """Every task that is run is a range of the profiler's, and is noted in `planned` by its name."""

    @contextmanager
    def watch(step: Step, _: object) -> Iterator[None]:
        name = step_name(step)
        planned[name] = step
        with record_function(name), torch.cuda.nvtx.range(name) if cuda else nullcontext():
            yield

    before, executor.watch = executor.watch, watch
    try:
        yield
    finally:
        executor.watch = before


def _held(engine: Engine, batch: list[Tensor]) -> int:
    """Bytes of all that an engine keeps from step to step, and of a batch; each storage once."""
    weights = [tensor for net in (engine.backbone.net, engine.heads) for tensor in net.parameters()]
    sizes: dict[int, int] = {}
    waiting: list[Any] = [engine.state_dict(), *weights, *batch]
    while waiting:
        item = waiting.pop()
        if isinstance(item, Tensor):
            sizes[item.untyped_storage().data_ptr()] = item.untyped_storage().nbytes()
        elif isinstance(item, Mapping):
            waiting.extend(item.values())
        elif isinstance(item, list | tuple):
            waiting.extend(item)
    return sum(sizes.values())


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    _wait(device)
    start = time.perf_counter()
    run()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
