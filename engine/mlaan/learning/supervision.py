"""Supervision: the list of local losses that a method puts on a partition."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from mlaan.errors import UserError

Criterion = Callable[[Any, Tensor, Tensor], Tensor]
"""(the head's output, images (N, C, H, W), labels) -> a 0-dim loss, the mean over the batch.

Labels are (N,) int64 classes or (N, classes) probabilities. A criterion with a true attribute `needs_classes` takes
classes alone.
"""


def cross_entropy(logits: Tensor, images: Tensor, labels: Tensor) -> Tensor:
    """Mean softmax cross-entropy of logits (N, classes) against labels (N,) or probabilities (N, classes)."""
    return F.cross_entropy(logits, labels)


def logits_of(output: Any) -> Tensor | None:
    """The logits (N, classes) in a head's output, or None: the output itself, or its field `logits`."""
    return output if isinstance(output, Tensor) else output.logits


@dataclass(frozen=True, eq=False)
class LocalLoss:
    """One local loss.

    Attributes:
        module: the local module it taps.
        head: the auxiliary network between that module's output and the loss. It gives logits (N, classes), which
            show an accuracy, or a NamedTuple of tensors whose field `logits` holds them.
        reach: how many modules back the gradient flows, the tapped one included; more than there are means all.
        weight: factor of this loss in the total.
        kind: its name in logs, one of its own for each loss of a module: "independent", "cascaded", "classifier".
        criterion: the loss function.
        predicts: false where the head's output holds no logits.
    """

    module: int
    head: nn.Module
    reach: int = 1
    weight: float = 1.0
    kind: str = "independent"
    criterion: Criterion = cross_entropy
    predicts: bool = True

    @property
    def name(self) -> str:
        return f"{self.module}.{self.kind}"

    @property
    def needs_classes(self) -> bool:
        """Whether soft labels do not do."""
        return getattr(self.criterion, "needs_classes", False)


@dataclass(frozen=True, eq=False)
class Twin:
    """An exponential moving average of a block of the backbone: each step twin <- keep * twin + (1 - keep) * source.

    Attributes:
        block: holds the twin's parameters; they get no gradient.
        source: the block of the backbone that it follows.
        keep: share of the old value, 0 to 1.
    """

    block: nn.Module
    source: nn.Module
    keep: float


@dataclass(frozen=True, eq=False)
class Supervision:
    """All local losses of a method, with what else it moves.

    Attributes:
        losses: ordered by module.
        twins: the moving averages, each once however many losses use it.
        statistics: how many times a step moves each module's running statistics, all with the same batch
            statistics; empty: once each.
        stem_statistics: the same for the stem inside module 0.
    """

    losses: tuple[LocalLoss, ...]
    twins: tuple[Twin, ...] = ()
    statistics: tuple[int, ...] = ()
    stem_statistics: int = 1

    @property
    def heads(self) -> list[nn.Module]:
        """The losses' heads, each once, in their order; one may be the backbone's own classifier."""
        return list({id(loss.head): loss.head for loss in self.losses}.values())

    def check(self, modules: int) -> None:
        """Hold the supervision against a partition into `modules` modules.

        Raises:
            UserError: a reach below 1, a module that is not there, a weight that is no number, two losses of one
                name, or no loss.
        """
        if not self.losses:
            raise UserError("losses = () is empty: a supervision needs at least one local loss")
        names = [loss.name for loss in self.losses]
        for loss in self.losses:
            if names.count(loss.name) > 1:
                raise UserError(
                    f"kind = {loss.kind!r} names {names.count(loss.name)} losses of module {loss.module}, and logs "
                    "would take them for one: give each a kind of its own"
                )
            if loss.reach < 1:
                raise UserError(
                    f"reach = {loss.reach} of loss {loss.name} must be at least 1, the tapped module itself"
                )
            if not 0 <= loss.module < modules:
                raise UserError(f"module = {loss.module} of loss {loss.name} must be from 0 to {modules - 1}")
            if not math.isfinite(loss.weight):
                raise UserError(f"weight = {loss.weight} of loss {loss.name} must be a finite number")
