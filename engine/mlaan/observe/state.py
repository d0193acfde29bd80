"""Where a run stands."""

from collections.abc import Iterable, Sized
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from mlaan.data.loader import LoaderStats
from mlaan.engine import Engine, Evaluation, StepResult
from mlaan.observe.finite import NotFinite, first_bad_loss, first_bad_weight


class Batches(Sized, Iterable[Any], Protocol):
    """Batches of (images, labels), one epoch for each loop, whose place inside an epoch can be saved.

    After `load_state_dict` the next loop gives what was left of its epoch, which may be nothing.
    """

    stats: LoaderStats

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: Any, /) -> None: ...


@dataclass(frozen=True)
class Means:
    """Means over the images of an epoch so far, one per local loss, in the engine's order."""

    losses: tuple[float, ...]
    top1: tuple[float, ...]


class Meter:
    """Sums over the steps of an epoch. They stay on the device: adding a step waits for nothing."""

    def __init__(self, losses: int, device: torch.device) -> None:
        self.losses = torch.zeros(losses, dtype=torch.float64, device=device)
        self.correct = torch.zeros(losses, dtype=torch.int64, device=device)
        self.samples = 0

    def add(self, result: StepResult) -> None:
        self.losses.add_(result.losses, alpha=result.samples)
        self.correct.add_(result.correct)
        self.samples += result.samples

    def read(self) -> Means:
        """The means; waits for the device. Zeros before the first step."""
        count = max(self.samples, 1)
        losses, correct = self.losses.tolist(), self.correct.tolist()
        return Means(tuple(loss / count for loss in losses), tuple(right / count for right in correct))

    def reset(self) -> None:
        self.losses.zero_()
        self.correct.zero_()
        self.samples = 0


class TrainState:
    """Where a run stands.

    Attributes:
        epoch: epochs finished, their tests included.
        batch: steps finished in the present epoch.
        step: steps finished since the start.
        trained: the present epoch's steps are all done and only its test is missing.
        rollbacks: steps of the present epoch that were taken back, as they left numbers that are not finite.
        seconds: time spent so far, in all the processes of a run.
        best_top1, best_epoch: highest test accuracy and the epoch, from 1, that gave it; -1 and 0 before it.
        meter: sums over the present epoch's steps.
    """

    _COUNTERS = ("epoch", "batch", "step", "trained", "rollbacks", "seconds", "best_top1", "best_epoch")

    def __init__(self, losses: int, device: torch.device) -> None:
        self.epoch = self.batch = self.step = 0
        self.trained = False
        self.rollbacks = 0
        self.seconds = 0.0
        self.best_top1, self.best_epoch = -1.0, 0
        self.meter = Meter(losses, device)

    def stepped(self, result: StepResult) -> None:
        self.meter.add(result)
        self.batch += 1
        self.step += 1

    def finished(self, evaluation: Evaluation | None) -> None:
        """Ends the epoch, with its test if it had one."""
        self.epoch += 1
        if evaluation and evaluation.top1 > self.best_top1:
            self.best_top1, self.best_epoch = evaluation.top1, self.epoch
        self.batch, self.trained, self.rollbacks = 0, False, 0
        self.meter.reset()

    def state_dict(self) -> dict[str, Any]:
        meter = {"losses": self.meter.losses, "correct": self.meter.correct, "samples": self.meter.samples}
        return {name: getattr(self, name) for name in self._COUNTERS} | {"meter": meter}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in self._COUNTERS:
            setattr(self, name, state.get(name, getattr(self, name)))  # files of before had no rollbacks
        self.meter.losses.copy_(state["meter"]["losses"])
        self.meter.correct.copy_(state["meter"]["correct"])
        self.meter.samples = state["meter"]["samples"]


def check_finite(engine: Engine, means: Means, state: TrainState) -> None:
    """Raises NotFinite, naming the first local loss whose mean is nan or infinite."""
    if bad := first_bad_loss(engine, torch.tensor(means.losses, dtype=torch.float64)):
        raise NotFinite(
            f"{bad} in epoch {state.epoch + 1}, step {state.step}: lower optim.learning_rate (now "
            f"{engine.learning_rate:.4g}) or set optim.warmup_epochs",
            state.step,
        )


def check_weights(engine: Engine, state: TrainState) -> None:
    """Raises NotFinite, naming the first weight or state that is not finite; waits for the device."""
    if bad := first_bad_weight(engine):
        raise NotFinite(
            f"{bad} after step {state.step}, in epoch {state.epoch + 1}: lower optim.learning_rate (now "
            f"{engine.learning_rate:.4g}) or set optim.warmup_epochs",
            state.step,
        )
