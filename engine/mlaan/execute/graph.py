"""The graph executor: a whole step captured once as a CUDA graph, then replayed."""

import warnings
from collections.abc import Callable
from typing import NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from mlaan.errors import StepMemoryError
from mlaan.execute.eager import EagerExecutor
from mlaan.execute.streams import StreamExecutor

T = TypeVar("T")


class Graphs(Protocol):
    """Capture and replay of work on a device."""

    def capture(self, run: Callable[[], T]) -> tuple[T, Callable[[], None]]:
        """Record what `run` gives to the device, without doing it.

        Returns:
            What `run` returned, filled at each replay; and what replays it.

        Raises:
            RuntimeError: something in it cannot be recorded.
        """
        ...


class CudaGraphs:
    """CUDA graphs on a device, each with memory of its own."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def capture(self, run: Callable[[], T]) -> tuple[T, Callable[[], None]]:
        with torch.cuda.device(self.device):
            torch.cuda.synchronize()
            torch.cuda.empty_cache()  # what the steps before took: the graph's memory comes on top of it
            graph = torch.cuda.CUDAGraph()
            # other threads, such as those that fetch data, may go on with what they do
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                results = run()

        def replay() -> None:
            with torch.cuda.device(self.device):
                graph.replay()

        return results, replay


class _Captured(NamedTuple):
    images: Tensor
    labels: Tensor
    results: tuple[Tensor, Tensor]
    replay: Callable[[], None]


class GraphExecutor:
    """Replays whole steps; another executor runs what cannot be.

    A step with images of a new shape runs as it is, for real: kernels are tuned in it, and what they keep for later
    steps is made. The next one with that shape is captured and replayed, so that there is no warm-up whose effects had
    to be undone. One step of another shape, such as the last batch of an epoch, runs outside; two in a row take the
    graph's place. A step without update, and one that finds gradients of such steps, run outside, too.

    Where a step cannot be captured, a RuntimeWarning says why, once, and the inner executor runs all steps.

    Args:
        inner: runs a step, is captured, and stands in.
        graphs: makes the graphs.
        prepare: called before a capture: makes every tensor that a step would make on first use and keep.
    """

    def __init__(self, inner: EagerExecutor, graphs: Graphs, prepare: Callable[[], None]) -> None:
        self.inner, self.graphs, self.prepare = inner, graphs, prepare
        self.captured: _Captured | None = None
        self.last_shape: tuple[int, ...] = ()
        self.obstacle = ""

    def run(self, images: Tensor, labels: Tensor, *, update: bool = True) -> tuple[Tensor, Tensor]:
        """See EagerExecutor."""
        shape = *images.shape, *labels.shape
        if not update or self.obstacle or self.inner.has_gradients():
            return self.inner.run(images, labels, update=update)
        if self.captured is None or not _alike(self.captured, images, labels):
            if self.last_shape != shape:
                self.last_shape = shape
                return self.inner.run(images, labels)
            self.captured = None  # its memory is free for the new one
            self.captured = self._capture(images, labels)
            if self.captured is None:
                return self.inner.run(images, labels)
        self.last_shape = shape
        self.captured.images.copy_(images)
        self.captured.labels.copy_(labels)
        self.captured.replay()
        losses, correct = self.captured.results
        return losses.clone(), correct.clone()

    def _capture(self, images: Tensor, labels: Tensor) -> _Captured | None:
        inner = self.inner
        random = [m for m, drawn in enumerate(inner.drawn) if drawn]
        if random:
            return self._give_up(
                f"module {random[0]} draws random numbers and is rebuilt: set memory.recompute = 'none'"
            )
        self.prepare()
        if isinstance(inner, StreamExecutor):
            inner.way(tuple(images.shape))
        still_images, still_labels = images.clone(), labels.clone()
        inner.keep_random = False
        try:
            results, replay = self.graphs.capture(lambda: inner.run(still_images, still_labels))
        except (RuntimeError, StepMemoryError) as error:
            for weight in (weight for weights in inner.weights for weight in weights):
                weight.grad = None
            return self._give_up(" ".join(str(error).split()))
        finally:
            inner.keep_random = True
        return _Captured(still_images, still_labels, results, replay)

    def _give_up(self, reason: str) -> None:
        self.obstacle = reason
        warnings.warn(
            f"steps run task by task, not as one CUDA graph, and small networks train slower so: {reason}",
            RuntimeWarning,
            stacklevel=4,
        )


def _alike(captured: _Captured, images: Tensor, labels: Tensor) -> bool:
    """Whether a graph serves these; labels may be classes or probabilities."""
    kinds = labels.shape == captured.labels.shape, labels.dtype == captured.labels.dtype
    return all(kinds) and images.shape == captured.images.shape
