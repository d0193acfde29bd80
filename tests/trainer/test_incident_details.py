"""What a step that was taken back leaves behind: nothing in the weights' average, random numbers, counters or logs."""

import json

import pytest
import torch

from mlaan import checkpoint
from mlaan.build import build
from mlaan.engine import Engine, StepResult
from mlaan.observe import recorder
from mlaan.observe.state import TrainState
from mlaan.optim.schedule import learning_rate
from trainer.tiny import config, one_thread, start, write_at_once

__all__ = ["one_thread"]


def mark(images: torch.Tensor) -> float:
    return float(images.double().sum())


def spoil(monkeypatch, places: set[int]) -> set[float]:
    """Lets the batches at these places of each epoch, from 0, leave nan; gives their marks."""
    batches = build(config()).train_batches
    bad = {mark(images) for _ in range(3) for place, (images, _) in enumerate(batches) if place in places}
    assert len(bad) == 3 * len(places)
    real = Engine.step

    def step(self, images, labels):
        result = real(self, images, labels)
        if mark(images) in bad:
            next(self.backbone.net.parameters()).data[0] = torch.nan
            result.losses.fill_(torch.nan)
        return result

    monkeypatch.setattr(Engine, "step", step)
    return bad


def trained_without(bad: set[float], **changes: str) -> Engine:
    """By a plain loop over all other batches."""
    settings = config(**changes)
    parts = build(settings)
    for epoch in range(settings.train.epochs):
        parts.engine.learning_rate = learning_rate(settings.optim, epoch, settings.train.epochs)
        for images, labels in parts.train_batches:
            if mark(images) not in bad:
                parts.engine.step(images, labels)
    return parts.engine


def equal(mine: dict, wanted: dict) -> bool:
    return mine.keys() == wanted.keys() and all(torch.equal(value, wanted[name]) for name, value in mine.items())


def test_no_checkpoint_of_the_middle_of_an_epoch_holds_a_statistic_that_is_not_finite(tmp_path, monkeypatch, capsys):
    """A training step does not read BatchNorm's running mean, so the losses stay good."""
    real, calls = Engine.step, []

    def step(self, images, labels):
        result = real(self, images, labels)
        calls.append(1)
        if len(calls) >= 3:
            self.backbone.net.get_buffer("layer1.0.bn1.running_mean")[0] = torch.inf
        return result

    monkeypatch.setattr(Engine, "step", step)
    write_at_once(monkeypatch)
    assert start(tmp_path / "run", run__checkpoint_minutes="1e-9", run__keep="100") == 2
    assert "backbone.layer1.0.bn1.running_mean has 1 of 16 values that are not finite" in capsys.readouterr().err
    paths = [tmp_path / "run" / "last.pt", *(tmp_path / "run" / "checkpoints").iterdir()]
    assert len(paths) == 1 + 3, "one before the first step, and one after each of two"
    for path in paths:
        saved = checkpoint.load(path)
        assert saved.progress["step"] < 3
        assert all(value.isfinite().all() for value in saved.engine["backbone"].values())


def test_the_average_of_the_weights_never_saw_a_step_that_was_taken_back(tmp_path, monkeypatch):
    bad = spoil(monkeypatch, {1})
    settings = {"train__average": "0.9"}
    assert start(tmp_path / "run", run__on_nan="rollback", **settings) == 0
    mine = checkpoint.load(tmp_path / "run" / "last.pt").engine["average"]
    wanted = trained_without(bad, **settings).state_dict()["average"]
    assert mine["updates"] == wanted["updates"] == 12
    assert equal(mine["weights"], wanted["weights"])


def test_the_random_numbers_of_a_step_that_was_taken_back_are_drawn_again(tmp_path, monkeypatch):
    real = Engine.step
    monkeypatch.setattr(Engine, "step", lambda self, x, y: real(self, x + torch.rand_like(x), y))
    bad = spoil(monkeypatch, {1})
    assert start(tmp_path / "run", run__on_nan="rollback") == 0
    mine = checkpoint.load(tmp_path / "run" / "last.pt").engine["backbone"]
    assert equal(mine, trained_without(bad).state_dict()["backbone"])


@pytest.fixture
def logging_each_step(monkeypatch):
    monkeypatch.setattr(recorder, "LOG_SECONDS", 0.0)


def test_each_epoch_may_take_steps_back_anew_and_each_step_is_logged_once(tmp_path, monkeypatch, logging_each_step):
    bad = spoil(monkeypatch, {1, 3})
    assert start(tmp_path / "run", run__on_nan="rollback") == 0
    assert len(list((tmp_path / "run" / "incidents").iterdir())) == len(bad) == 6
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    epochs = ((("step", n + 1), ("step", n + 2), ("step", n + 3), ("epoch", n + 3)) for n in (0, 3, 6))
    assert [(line["type"], line["step"]) for line in lines] == [line for epoch in epochs for line in epoch]
    assert [line["epoch"] for line in lines] == [1] * 4 + [2] * 4 + [3] * 4


def test_a_checkpoint_holds_how_often_steps_of_its_epoch_were_taken_back_and_all_other_counters():
    """Else a resumed run would take back three more, and write over the steps that are kept."""
    state, again = (TrainState(2, torch.device("cpu")) for _ in range(2))
    state.stepped(StepResult(torch.tensor([1.0, 2.0]), torch.tensor([3, 4]), 8))
    for place, name in enumerate(("epoch", "batch", "step", "rollbacks", "seconds", "best_top1", "best_epoch"), 2):
        setattr(state, name, type(getattr(state, name))(place))
    state.trained = True
    again.load_state_dict(state.state_dict())
    mine, its = ({name: value for name, value in vars(one).items() if name != "meter"} for one in (again, state))
    assert mine == its
    assert again.meter.read() == state.meter.read()
    assert again.meter.samples == 8
