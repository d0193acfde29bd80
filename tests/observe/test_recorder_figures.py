"""The figures that a recorder works out, and when a checkpoint is made up for, by a clock that is set by hand."""

import math
from types import SimpleNamespace

import pytest
import torch

from mlaan.build import build
from mlaan.engine import Evaluation, StepResult
from mlaan.observe import recorder as module
from mlaan.observe.finite import NotFinite
from mlaan.observe.metrics import MetricsLog
from mlaan.observe.recorder import Recorder
from mlaan.observe.saver import Saver
from mlaan.observe.state import TrainState
from mlaan.observe.stop import StopRequest
from mlaan.run_folder import RunFolder
from trainer.tiny import STEPS, config

NEVER = 1e9


@pytest.fixture(scope="module")
def parts():
    return build(config())


class Watched:
    """A recorder of a run whose steps and tests are made up.

    Attributes:
        steps, epochs: the snapshots that were shown.
        saved: the steps of its checkpoints, which go nowhere.
        is_busy: whether one is being written.
    """

    def __init__(self, folder, parts, monkeypatch, state: TrainState, *, interval: float = 0.0) -> None:
        self.now, self.is_busy, self.state = 0.0, False, state
        self.steps, self.epochs, self.saved = [], [], []
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: self.now))
        monkeypatch.setattr(Saver, "is_busy", property(lambda saver: self.is_busy))
        monkeypatch.setattr(Saver, "start", lambda saver, content, step, **_: self.saved.append(step))
        display = SimpleNamespace(
            interval=interval, step=self.steps.append, epoch=self.epochs.append, say=print, close=lambda: None
        )
        self.recorder = Recorder(
            RunFolder(folder),
            config(run__checkpoint_minutes="5"),
            parts.engine,
            parts.train_batches,
            state,
            MetricsLog(folder / "metrics.jsonl"),
            display,
            StopRequest(),
        )

    def step(self, seconds: float) -> None:
        """One of 8 images."""
        self.now += seconds
        losses = len(self.state.meter.losses)
        self.state.stepped(StepResult(torch.ones(losses), torch.zeros(losses, dtype=torch.int64), 8))
        self.recorder.stepped(self.state)

    def end_epoch(self, evaluation: Evaluation, seconds: float) -> None:
        """After a test that takes so long."""
        means = self.state.meter.read()
        self.recorder.trained(self.state)
        self.now += seconds
        self.state.finished(evaluation)
        self.recorder.finished(self.state, means, evaluation)


@pytest.fixture
def watch(tmp_path, monkeypatch, parts):
    """Makes a `Watched` of a run that stands where it begins, or where another process left it."""
    made = []

    def begin(state: TrainState | None = None, **display: float) -> Watched:
        made.append(Watched(tmp_path, parts, monkeypatch, state or fresh(parts), **display))
        return made[-1]

    yield begin
    for watched in made:
        watched.recorder.close()


def fresh(parts) -> TrainState:
    return TrainState(len(parts.engine.loss_names), parts.engine.device)


def left_after_six_steps(parts) -> TrainState:
    """After 1000 seconds in another process, one step inside the second epoch."""
    state = fresh(parts)
    state.epoch, state.batch, state.step, state.seconds, state.meter.samples = 1, 1, STEPS + 1, 1000.0, 8
    return state


def test_the_time_that_is_left_is_that_of_the_steps_still_to_come_at_this_processs_pace(watch, parts):
    watched = watch(left_after_six_steps(parts))
    watched.step(10)
    watched.step(20)
    left = 3 * STEPS - (STEPS + 1)
    assert [now.seconds_left for now in watched.steps] == [10 * (left - 1), 15 * (left - 2)]
    assert [now.seconds for now in watched.steps] == [1010, 1030]


def test_images_per_second_are_those_since_the_last_line_and_an_epochs_those_of_its_steps(watch, parts):
    watched = watch(left_after_six_steps(parts))
    watched.step(10)
    watched.step(2)
    assert [now.images_per_second for now in watched.steps] == [0.8, 4]
    watched.end_epoch(Evaluation(1.0, 0.5, 12), seconds=100)
    assert watched.epochs[-1].images_per_second == pytest.approx(16 / 12)
    watched.step(4)
    assert watched.steps[-1].images_per_second == 2
    watched.step(1)
    watched.end_epoch(Evaluation(1.0, 0.5, 12), seconds=100)
    assert watched.epochs[-1].images_per_second == pytest.approx(16 / 5)


def test_a_checkpoint_whose_turn_comes_while_another_is_written_is_made_up_for_at_once(watch):
    watched = watch(interval=NEVER)
    watched.step(299)
    watched.is_busy = True
    watched.step(2)
    watched.step(2)
    assert watched.saved == []
    watched.is_busy = False
    watched.step(2)
    assert watched.saved == [4]
    watched.step(2)
    assert watched.saved == [4]
    watched.step(300)
    assert watched.saved == [4, 6]


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_test_loss_that_is_not_finite_ends_the_run_and_is_not_saved(watch, loss):
    watched = watch()
    watched.step(1)
    with pytest.raises(NotFinite, match=rf"the test loss is {loss} after epoch 1: lower optim\.learning_rate"):
        watched.end_epoch(Evaluation(loss, 0.5, 12), seconds=1)
    assert (watched.epochs, watched.saved) == ([], [])
