"""When the loop tests; its engine and its recorder are stand-ins, so that nothing is computed."""

from types import SimpleNamespace

import pytest
import torch

from mlaan.config import SGDConfig, TrainConfig
from mlaan.engine import Evaluation, StepResult
from mlaan.observe.state import TrainState
from mlaan.trainer import train


@pytest.mark.parametrize(
    ("epochs", "every", "tested"),
    [(3, 1, [1, 2, 3]), (4, 2, [2, 4]), (5, 2, [2, 4, 5]), (7, 3, [3, 6, 7]), (3, 10, [3])],
)
def test_every_so_many_epochs_and_the_last_are_tested(epochs, every, tested):
    result = StepResult(torch.ones(1), torch.zeros(1, dtype=torch.int64), 4)
    engine = SimpleNamespace(
        loss_names=["local"],
        loss_modules=[0],
        step=lambda images, labels: result,
        evaluate=lambda batches: Evaluation(1.0, 0.5, len(batches)),
    )
    seen = []
    recorder = SimpleNamespace(
        stepped=lambda state: None,
        trained=lambda state: None,
        testing=lambda batches: batches,
        finished=lambda state, means, evaluation: seen.append((state.epoch, evaluation is not None)),
    )
    state, schedule = TrainState(1, torch.device("cpu")), TrainConfig(epochs=epochs, test_every=every)
    train(engine, [(None, None)] * 2, [None], SGDConfig(), schedule, state, recorder)
    assert [epoch for epoch, _ in seen] == [*range(1, epochs + 1)]
    assert [epoch for epoch, has_test in seen if has_test] == tested
    assert state.step == 2 * epochs
