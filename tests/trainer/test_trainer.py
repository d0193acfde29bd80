"""The loop: rates, means, and going on from any place as if there had been no stop."""

import math

import pytest
import torch

from mlaan import checkpoint
from mlaan.build import build
from mlaan.engine import Engine, Evaluation, StepResult
from mlaan.errors import UserError
from mlaan.observe.metrics import read_epochs
from mlaan.observe.state import Meter, TrainState, check_finite
from mlaan.observe.stop import StopRequest
from trainer.tiny import STEPS, config, final_state, one_thread, resume, same, start

__all__ = ["one_thread"]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    torch.set_num_threads(1)
    assert start(folder) == 0
    return folder


def stop_at(monkeypatch, step: int) -> None:
    """A wish to stop that comes while the given step runs; 0: never."""
    count = [0]
    real = Engine.step

    def counted(self, images, labels):
        count[0] += 1
        if count[0] == step:
            requests[-1]._ask(15, None)
        return real(self, images, labels)

    requests = _requests(monkeypatch)
    monkeypatch.setattr(Engine, "step", counted)


def _requests(monkeypatch) -> list[StopRequest]:
    made: list[StopRequest] = []
    enter = StopRequest.__enter__

    def remember(self):
        made.append(self)
        return enter(self)

    monkeypatch.setattr(StopRequest, "__enter__", remember)
    return made


@pytest.mark.parametrize("step", [1, 7, STEPS, 3 * STEPS])
def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(tmp_path, monkeypatch, uninterrupted, step):
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_at(patch, step)
        assert start(folder) == 143
    assert checkpoint.load(folder / "last.pt").progress["step"] == step
    assert resume(folder) == 0
    assert same(final_state(folder), final_state(uninterrupted))


def test_a_wish_to_stop_during_a_test_saves_before_it(tmp_path, monkeypatch, uninterrupted):
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        requests, real = _requests(patch), Engine.evaluate

        def interrupted(self, batches):
            requests[-1]._ask(2, None)
            return real(self, batches)

        patch.setattr(Engine, "evaluate", interrupted)
        assert start(folder) == 130
    progress = checkpoint.load(folder / "last.pt").progress
    assert (progress["epoch"], progress["step"], progress["trained"]) == (0, STEPS, True)
    assert resume(folder) == 0
    assert same(final_state(folder), final_state(uninterrupted))
    assert len(read_epochs(folder / "metrics.jsonl")) == 3


def test_without_the_loaders_state_the_end_differs(tmp_path, monkeypatch, uninterrupted):
    """The control: the comparison above does see a resume that starts its epoch over."""
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_at(patch, 7)
        start(folder)
    with monkeypatch.context() as patch:
        patch.setattr("mlaan.data.MemoryLoader.load_state_dict", lambda self, state: None)
        assert resume(folder) == 0
    ours, whole = (dict(final_state(f)) for f in (folder, uninterrupted))
    weights = [key for key in whole if key.startswith(".engine.backbone") and whole[key].is_floating_point()]
    assert not all(torch.equal(ours[key], whole[key]) for key in weights)


def test_random_numbers_drawn_in_a_step_go_on_too(tmp_path, monkeypatch):
    real = Engine.step
    monkeypatch.setattr(Engine, "step", lambda self, x, y: real(self, x + torch.rand_like(x), y))
    assert start(tmp_path / "whole") == 0
    with monkeypatch.context() as patch:
        stop_at(patch, 7)
        assert start(tmp_path / "run") == 143
    assert resume(tmp_path / "run") == 0
    assert same(final_state(tmp_path / "run"), final_state(tmp_path / "whole"))


def test_a_resumed_run_logs_every_epoch_once_with_the_same_numbers(tmp_path, monkeypatch, uninterrupted):
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_at(patch, 7)
        start(folder)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"type": "epoch", "epoch": 99}\n')  # written after the checkpoint, then the process died
    resume(folder)
    keys = ("epoch", "step", "losses", "top1", "test_loss", "test_top1", "best_top1", "learning_rate")
    ours, whole = (read_epochs(f / "metrics.jsonl") for f in (folder, uninterrupted))
    assert [[line[key] for key in keys] for line in ours] == [[line[key] for key in keys] for line in whole]


def test_the_resolved_config_repeats_the_run(tmp_path, uninterrupted):
    from mlaan.cli import main

    again = tmp_path / "again"
    assert main(["train", "--config", str(uninterrupted / "config.toml"), "--run.folder", str(again)]) == 0
    assert same(final_state(again), final_state(uninterrupted))


def test_another_seed_trains_other_weights(tmp_path, uninterrupted):
    start(tmp_path / "run", train__seed="1")
    assert not same(final_state(tmp_path / "run"), final_state(uninterrupted))


def test_the_rate_follows_the_schedule_epoch_by_epoch(uninterrupted):
    rates = [line["learning_rate"] for line in read_epochs(uninterrupted / "metrics.jsonl")]
    assert rates == pytest.approx([0.025 * (1 + math.cos(math.pi * epoch / 3)) for epoch in range(3)])


def test_meter_weighs_steps_by_their_images():
    meter = Meter(2, torch.device("cpu"))
    meter.add(StepResult(torch.tensor([1.0, 2.0]), torch.tensor([3, 0]), 4))
    meter.add(StepResult(torch.tensor([4.0, 0.5]), torch.tensor([1, 1]), 1))
    means = meter.read()
    assert means.losses == pytest.approx(((4 * 1 + 4) / 5, (8 + 0.5) / 5))
    assert means.top1 == pytest.approx((4 / 5, 1 / 5))


def test_state_survives_saving():
    state = TrainState(2, torch.device("cpu"))
    state.stepped(StepResult(torch.tensor([1.0, 2.0]), torch.tensor([3, 0]), 4))
    state.finished(Evaluation(1.0, 0.5, 10))
    state.stepped(StepResult(torch.tensor([5.0, 6.0]), torch.tensor([1, 2]), 8))
    other = TrainState(2, torch.device("cpu"))
    other.load_state_dict(state.state_dict())
    assert (other.epoch, other.batch, other.step, other.best_top1, other.best_epoch) == (1, 1, 2, 0.5, 1)
    assert other.meter.read() == state.meter.read()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_named_with_a_remedy(bad):
    engine = build(config()).engine
    state = TrainState(len(engine.loss_names), engine.device)
    losses = torch.zeros(len(engine.loss_names))
    losses[1] = bad
    state.stepped(StepResult(losses, torch.zeros(len(losses), dtype=torch.int64), 8))
    with pytest.raises(UserError, match=r"0\.cascaded of module 0 is (nan|inf) .*step 1.*optim\.learning_rate"):
        check_finite(engine, state.meter.read(), state)


def test_a_run_that_diverges_stops_and_keeps_its_last_good_checkpoint(tmp_path, monkeypatch, capsys):
    real = Engine.step

    def diverging(self, images, labels):
        result = real(self, images, labels)
        steps.append(1)
        if len(steps) > STEPS:
            result.losses[0] = math.nan
        return result

    steps: list[int] = []
    monkeypatch.setattr(Engine, "step", diverging)
    assert start(tmp_path / "run") == 2
    assert "0.independent of module 0 is nan" in capsys.readouterr().err
    assert checkpoint.load(tmp_path / "run" / "last.pt").progress["epoch"] == 1
