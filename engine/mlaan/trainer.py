"""The training loop."""

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor

from mlaan.config import OptimConfig, TrainConfig
from mlaan.engine import Engine, StepResult
from mlaan.observe.recorder import Recorder
from mlaan.observe.state import Batches, TrainState, check_finite
from mlaan.optim.schedule import learning_rate


def train(
    engine: Engine,
    train_batches: Batches,
    test_batches: Iterable[Any],
    optim: OptimConfig,
    schedule: TrainConfig,
    state: TrainState,
    recorder: Recorder,
    step: Callable[[Tensor, Tensor], StepResult | None] | None = None,
) -> None:
    """Trains from where `state` and `train_batches` stand until the schedule's epochs are finished.

    Args:
        step: takes a training step, by default `engine.step`; None from it says that the batch was left out.

    Raises:
        NotFinite: a loss or a weight is not finite any more.
    """
    step = step or engine.step
    while state.epoch < schedule.epochs:
        engine.learning_rate = learning_rate(optim, state.epoch, schedule.epochs)
        if not state.trained:
            for images, labels in train_batches:
                if (result := step(images, labels)) is not None:
                    state.stepped(result)
                    recorder.stepped(state)
            state.trained = True
        means = state.meter.read()
        check_finite(engine, means, state)
        recorder.trained(state)
        evaluation = None
        if (state.epoch + 1) % schedule.test_every == 0 or state.epoch + 1 == schedule.epochs:
            evaluation = engine.evaluate(recorder.testing(test_batches))
        state.finished(evaluation)
        recorder.finished(state, means, evaluation)
