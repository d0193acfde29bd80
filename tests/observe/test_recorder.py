"""When the recorder shows, logs and saves."""

import io
import json

import pytest

from mlaan import checkpoint
from mlaan.build import build
from mlaan.config import Config
from mlaan.engine import Engine, Evaluation
from mlaan.errors import UserError
from mlaan.observe import recorder as module
from mlaan.observe.metrics import MetricsLog
from mlaan.observe.plain import PlainDisplay
from mlaan.observe.recorder import Recorder
from mlaan.observe.state import Meter, TrainState
from mlaan.observe.stop import StopRequest
from mlaan.run_folder import RunFolder
from mlaan.trainer import train
from trainer.tiny import STEPS, config, write_at_once


class Clock:
    """Moves by `pace` seconds at every look."""

    def __init__(self, pace: float) -> None:
        self.now, self.pace = 0.0, pace

    def monotonic(self) -> float:
        self.now += self.pace
        return self.now


@pytest.fixture
def run(tmp_path, monkeypatch):
    def go(pace: float, **changes: str):
        monkeypatch.setattr(module, "time", Clock(pace))
        settings: Config = config(run__folder=str(tmp_path / "run"), **changes)
        engine, train_batches, test_batches, *_ = build(settings)
        folder = RunFolder.create(settings)
        stream, state = io.StringIO(), TrainState(len(engine.loss_names), engine.device)
        metrics = MetricsLog(folder.metrics)
        display = PlainDisplay(stream)
        recorder = Recorder(folder, settings, engine, train_batches, state, metrics, display, StopRequest())
        try:
            train(engine, train_batches, test_batches, settings.optim, settings.train, state, recorder)
        finally:
            recorder.close()
        return folder, stream.getvalue()

    return go


def test_a_fast_run_reads_the_device_once_an_epoch_and_says_one_line(run, monkeypatch):
    reads = []
    real = Meter.read
    monkeypatch.setattr(Meter, "read", lambda self: reads.append(1) or real(self))
    folder, said = run(pace=1e-4)
    assert len(reads) == 3
    assert len(said.splitlines()) == 3
    types = [json.loads(line)["type"] for line in folder.metrics.read_text().splitlines()]
    assert types == ["epoch"] * 3


def test_a_slow_run_also_logs_and_shows_steps_and_saves_inside_epochs(run, monkeypatch):
    saved = []
    real = checkpoint.save

    def save(content, *rest):
        saved.append(content.progress)
        real(content, *rest)

    monkeypatch.setattr(checkpoint, "save", save)
    folder, said = run(pace=20, run__checkpoint_minutes="0.5")
    lines = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    assert sum(line["type"] == "step" for line in lines) >= 2 * STEPS
    assert "step 2/5" in said
    assert any(progress["batch"] not in (0, STEPS) for progress in saved)
    assert all(line["images_per_second"] > 0 for line in lines)


def test_a_loss_that_is_not_finite_ends_the_run_at_the_next_reading_and_is_not_saved(run, monkeypatch, tmp_path):
    write_at_once(monkeypatch)
    real, steps = Engine.step, []

    def diverging(self, images, labels):
        result = real(self, images, labels)
        steps.append(1)
        if len(steps) >= 3:
            result.losses[0] = float("nan")
        return result

    monkeypatch.setattr(Engine, "step", diverging)
    with pytest.raises(UserError, match="epoch 1, step 3"):
        run(pace=20, run__checkpoint_minutes="0.01")
    assert checkpoint.load(tmp_path / "run" / "last.pt").progress["step"] == 2


def test_best_is_kept_when_later_epochs_are_worse(run, monkeypatch):
    scores = iter([0.2, 0.9, 0.4])

    def evaluate(self, batches):
        return Evaluation(1.0, next(scores), sum(len(batch.labels) for batch in batches))

    monkeypatch.setattr(Engine, "evaluate", evaluate)
    folder, said = run(pace=1e-4)
    assert checkpoint.load(folder.best).progress["epoch"] == 2
    assert checkpoint.load(folder.last).progress["epoch"] == 3
    assert "test 40.0 %, best 90.0 %" in said
