"""Who runs in a benchmark of training steps: four ways to train one network, from equal weights."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch

from exact.compare import Pair, gap, judge_of
from mlaan import MLAAN, Backbone, Engine
from mlaan.compare.contenders import (
    LEARNING_RATE,
    MOMENTUM,
    WEIGHT_DECAY,
    Contender,
    EndToEnd,
    segment_counts,
    step_peak,
)
from mlaan.compare.measure import Batch

__all__ = [
    "LEARNING_RATE",
    "MOMENTUM",
    "WEIGHT_DECAY",
    "Case",
    "Contender",
    "EndToEnd",
    "WrongGradientsError",
    "check_gradients",
    "make_batches",
    "make_contenders",
    "step_peak",
]

TOLERANCE = 1e-9
CLASSES = 10


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
    best = checkpointed.split_best(segment_counts(len(checkpointed.backbone.blocks)), batch)
    return {"end-to-end": plain, "checkpointed": checkpointed, "two-path": pair.judge, "ours": pair.engine}, best


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
