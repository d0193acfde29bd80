"""Who runs in a benchmark of training steps: four ways to train one network, from equal weights."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from benchmarks.measure import Batch, peak_memory
from exact.compare import Pair, gap, judge_of
from mlaan import MLAAN, Backbone, Engine
from mlaan.learning import cut
from mlaan_kernels.blocks import fuse

TOLERANCE = 1e-9
# Small, so that no contender runs off into infinities or denormals, which take another time, on random images.
LEARNING_RATE = 1e-4
CLASSES = 10
MOMENTUM, WEIGHT_DECAY = 0.9, 1e-4
SEGMENTS_TRIED = (2, 3, 4, 5, 6, 8, 10, 12)  # and as many as there are blocks


class WrongGradientsError(RuntimeError):
    """Ours and the two-path schedule disagree: there is nothing to time."""


@dataclass(frozen=True)
class Case:
    """One network and one way to cut and supervise it.

    Attributes:
        backbone: makes the network, of 10 classes; its weights come from torch's generator.
        size: side of the square images, of 3 channels.
        cuts: as in `mlaan.Engine`.
        batch, gpu_batch: images per step on a CPU and on a GPU.
        rounds: measured rounds on a CPU.
    """

    name: str
    backbone: Callable[[], Backbone]
    size: int
    modules: int
    preset: Literal["paper", "light"]
    cuts: str
    batch: int
    gpu_batch: int
    rounds: int
    reach: int = 2

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        return 3, self.size, self.size


class Contender(Protocol):
    """A training step on equal terms with the others."""

    def step(self, images: Tensor, labels: Tensor) -> object:
        """Forward, gradients and update on images (N, C, H, W) and labels (N,) int64."""
        ...


class EndToEnd:
    """A plain training step; with more than one segment, all but the last are checkpointed.

    As usual with torch.utils.checkpoint, recomputing a segment moves its running statistics once more.

    Args:
        precision: autocast's dtype; None: the weights' own.
        fused: run our fused blocks.
    """

    def __init__(self, backbone: Backbone, precision: torch.dtype | None = None, fused: bool = False) -> None:
        self.backbone, self.net, self.classifier = backbone, backbone.net.train(), backbone.classifier
        self.precision, self.fused = precision, fused
        self.split(1)
        self.optimizer = torch.optim.SGD(
            self.net.parameters(), LEARNING_RATE, MOMENTUM, nesterov=True, weight_decay=WEIGHT_DECAY, fused=True
        )

    @contextmanager
    def updating_in_the_backward(self) -> Iterator[None]:
        """Each weight moves as soon as its gradient is there, and the gradient goes: the least memory."""
        one_each = {
            weight: torch.optim.SGD([weight], LEARNING_RATE, MOMENTUM, nesterov=True, weight_decay=WEIGHT_DECAY)
            for weight in self.net.parameters()
        }
        for weight, optimizer in one_each.items():
            optimizer.state[weight] = self.optimizer.state[weight]

        def update(weight: Tensor) -> None:
            one_each[cast(nn.Parameter, weight)].step()
            weight.grad = None

        hooks = [weight.register_post_accumulate_grad_hook(update) for weight in self.net.parameters()]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def split(self, segments: int) -> None:
        """From now on checkpoint by so many runs of blocks."""
        self.parts: list[Any] = list(cut(self.backbone, segments).modules(self.backbone))
        if self.fused:
            self.parts = [fuse(part) for part in self.parts]

    def compile(self) -> None:
        """From now on run what torch.compile makes of the network."""
        self.parts = [torch.compile(nn.Sequential(*self.parts))]

    def step(self, images: Tensor, labels: Tensor) -> Tensor:
        """See Contender; returns the loss."""
        self.optimizer.zero_grad(set_to_none=True)
        h = images
        with torch.autocast(images.device.type, self.precision, enabled=self.precision is not None):
            for part in self.parts[:-1]:
                h = checkpoint(part, h, use_reentrant=False)
            loss = F.cross_entropy(self.classifier(self.parts[-1](h)), labels)
        loss.backward()
        self.optimizer.step()
        return loss.detach()


def make_pair(case: Case, device: torch.device, dtype: torch.dtype) -> Pair:
    """Our engine, lean, and the tests' two-path schedule on copies of its very modules."""
    torch.manual_seed(0)
    backbone = case.backbone()
    backbone.net.to(device, dtype)
    method = MLAAN(preset=case.preset, reach=case.reach)
    engine = Engine(
        backbone,
        method,
        case.modules,
        input_shape=case.shape,
        cuts=case.cuts,
        learning_rate=LEARNING_RATE,
        momentum=MOMENTUM,
        weight_decay=WEIGHT_DECAY,
    )
    memo: dict[int, Any] = {}
    modules, supervision = copy.deepcopy((engine.partition.modules(backbone), engine.supervision), memo)
    judge = judge_of(engine, method, modules, supervision)
    judge.learning_rate = LEARNING_RATE
    return Pair(engine, judge, memo)


def check_gradients(case: Case, device: torch.device, samples: int = 4) -> float:
    """Compare ours with the two-path schedule in float64 on a few images: every loss, every weight's gradient.

    Returns:
        The largest relative gap.

    Raises:
        WrongGradientsError: it is not below TOLERANCE.
    """
    pair = make_pair(case, device, torch.float64)
    images, labels = make_batches(case, samples, 1, device, torch.float64)[0]
    ours = pair.engine.gradients(images, labels)
    theirs = pair.judge.step(images, labels, update=False)
    gaps = [gap(value, theirs[name]) for name, value in zip(pair.engine.loss_names, ours.losses, strict=True)]
    weights = [*pair.engine.backbone.net.parameters(), *pair.engine.heads.parameters()]
    gaps += [gap(weight.grad, pair.twin_of[id(weight)].grad) for weight in weights if weight.requires_grad]
    if max(gaps) >= TOLERANCE:
        raise WrongGradientsError(
            f"{case.name}: gradients differ from the two-path schedule's by {max(gaps):.1e} in float64, "
            f"where {TOLERANCE:.0e} is allowed: no time for it"
        )
    return max(gaps)


def make_contenders(case: Case, batch: Batch) -> tuple[dict[str, Contender], int]:
    """All four, float32, and the segment count of the checkpointed one: the lowest peak of those tried on `batch`."""
    pair = make_pair(case, batch[0].device, torch.float32)
    plain, checkpointed = (EndToEnd(copy.deepcopy(pair.engine.backbone)) for _ in range(2))
    start = copy.deepcopy(checkpointed.net.state_dict())
    checkpointed.step(*batch)  # momenta are there before a peak is taken
    blocks = len(checkpointed.backbone.blocks)
    peaks = {}
    for segments in sorted({count for count in SEGMENTS_TRIED if count < blocks} | {blocks}):
        checkpointed.split(segments)
        peaks[segments] = step_peak(checkpointed, batch)
    best = min(peaks, key=peaks.__getitem__)
    checkpointed.split(best)
    checkpointed.net.load_state_dict(start)
    checkpointed.optimizer.state.clear()
    return {"end-to-end": plain, "checkpointed": checkpointed, "two-path": pair.judge, "ours": pair.engine}, best


def step_peak(contender: Contender, batch: Batch) -> int:
    """Peak bytes of one step above what it found; it finds no gradients, so that those it makes are in the figure.

    Ours updates a module as soon as its gradients are complete. For equal terms the end-to-end contenders update each
    weight in the backward here, so that they hold no more gradients than they must.
    """
    for weight in _weights(contender):
        weight.grad = None
    if isinstance(contender, EndToEnd):
        with contender.updating_in_the_backward():
            return peak_memory(lambda: contender.step(*batch), batch[0].device)
    return peak_memory(lambda: contender.step(*batch), batch[0].device)


def make_batches(case: Case, samples: int, count: int, device: torch.device, dtype: torch.dtype) -> list[Batch]:
    """Random images and labels, the same in every process."""
    random = torch.Generator().manual_seed(0)
    return [
        (
            torch.randn(samples, *case.shape, generator=random, dtype=dtype).to(device),
            torch.randint(CLASSES, (samples,), generator=random).to(device),
        )
        for _ in range(count)
    ]


def _weights(contender: Contender) -> Iterator[nn.Parameter]:
    match contender:
        case EndToEnd():
            yield from contender.net.parameters()
        case Engine():
            yield from contender.backbone.net.parameters()
            yield from contender.heads.parameters()
        case _:
            yield from contender.trained  # type: ignore[attr-defined]
