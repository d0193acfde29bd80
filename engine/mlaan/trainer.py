"""The training loop."""

from collections.abc import Iterable
from typing import Any

from mlaan.config import OptimConfig
from mlaan.engine import Engine
from mlaan.observe.recorder import Recorder
from mlaan.observe.state import Batches, TrainState, check_finite
from mlaan.optim.schedule import learning_rate


def train(
    engine: Engine,
    train_batches: Batches,
    test_batches: Iterable[Any],
    optim: OptimConfig,
    epochs: int,
    state: TrainState,
    recorder: Recorder,
) -> None:
    """Trains from where `state` and `train_batches` stand until `epochs` are finished.

    Raises:
        UserError: a loss is not finite any more.
    """
    while state.epoch < epochs:
        engine.learning_rate = learning_rate(optim, state.epoch, epochs)
        if not state.trained:
            for images, labels in train_batches:
                state.stepped(engine.step(images, labels))
                recorder.stepped(state)
            state.trained = True
        means = state.meter.read()
        check_finite(engine, means, state)
        evaluation = engine.evaluate(recorder.testing(test_batches, state))
        state.tested(evaluation.top1)
        recorder.tested(state, means, evaluation)
