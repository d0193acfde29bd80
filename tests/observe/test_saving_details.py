"""What is in a checkpoint, when it is tried again, and which one is the best."""

import json
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from cli.test_long_runs import EVERY_STEP, full_disk, written_late
from mlaan import checkpoint, signed
from mlaan.engine import Engine, Evaluation
from mlaan.errors import UserError
from mlaan.observe import recorder
from mlaan.observe.metrics import MetricsLog, read_epochs
from mlaan.observe.state import TrainState
from trainer.test_trainer import stop_at
from trainer.tiny import STEPS, one_thread, resume, start, write_at_once

__all__ = ["one_thread"]


def answer_right(monkeypatch, *top1: float) -> None:
    """Gives the epochs these accuracies in their tests."""
    left = iter(top1)
    monkeypatch.setattr(Engine, "evaluate", lambda self, batches: Evaluation(1.0, next(left), 12))


def steps_of_seconds(monkeypatch, seconds: float) -> None:
    """Each step takes so long by the recorder's clock."""
    real, count = Engine.step, []

    def step(self, images, labels):
        count.append(1)
        return real(self, images, labels)

    monkeypatch.setattr(Engine, "step", step)
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + seconds * len(count))
    monkeypatch.setattr(recorder, "time", clock)


def best(folder: Path) -> tuple[int, int]:
    """Of best.pt: the epochs that were finished, and which was the best."""
    progress = checkpoint.load(folder / "best.pt").progress
    return progress["epoch"], progress["best_epoch"]


def test_the_best_epoch_is_in_best_pt_though_the_disk_was_full_at_first(tmp_path, monkeypatch, capsys):
    answer_right(monkeypatch, 0.1, 0.2, 0.3)
    full_disk(monkeypatch, tmp_path / "run", range(3, 4))  # the last epoch's; the first was of before the first step
    assert start(tmp_path / "run") == 0
    assert "No space left on device" in capsys.readouterr().out
    assert best(tmp_path / "run") == (3, 3)


@pytest.mark.parametrize("minutes", ["5", "1e-9"])
def test_a_best_epoch_in_the_middle_is_not_lost_to_a_full_disk(tmp_path, monkeypatch, minutes):
    answer_right(monkeypatch, 0.1, 0.5, 0.2)
    real = signed.write

    def write(content, path, links=()):
        if links and content["progress"]["epoch"] == 2:
            raise UserError("the disk is full")
        real(content, path, links)

    monkeypatch.setattr(signed, "write", write)
    assert start(tmp_path / "run", run__checkpoint_minutes=minutes) == 0
    assert best(tmp_path / "run") == (2, 2)
    last = checkpoint.load(tmp_path / "run" / "last.pt").progress
    assert (last["epoch"], last["best_epoch"]) == (3, 2)


def test_of_two_epochs_that_are_equally_good_the_first_stays_the_best(tmp_path, monkeypatch):
    answer_right(monkeypatch, 0.2, 0.5, 0.5)
    assert start(tmp_path / "run") == 0
    assert best(tmp_path / "run") == (2, 2)
    assert checkpoint.load(tmp_path / "run" / "last.pt").progress["best_epoch"] == 2


def test_the_sums_in_a_checkpoint_are_of_its_step_though_steps_go_on_while_it_is_written(tmp_path, monkeypatch):
    sums: dict[int, tuple] = {}
    real_stepped = TrainState.stepped

    def stepped(self, result):
        real_stepped(self, result)
        sums[self.step] = self.meter.losses.clone(), self.meter.correct.clone(), self.meter.samples

    monkeypatch.setattr(TrainState, "stepped", stepped)
    overtaken = written_late(monkeypatch, lambda: len(sums))
    assert start(tmp_path / "run", run__keep="100", **EVERY_STEP) == 0
    assert any(overtaken), "no step was taken while a checkpoint was written"
    inside = 0
    for path in (tmp_path / "run" / "checkpoints").iterdir():
        progress = checkpoint.load(path).progress
        losses, correct, samples = progress["meter"].values()
        if progress["batch"] == 0:
            assert not losses.any()
            assert (int(correct.sum()), samples) == (0, 0)
            continue
        inside += 1
        wanted = sums[progress["step"]]
        assert torch.equal(losses, wanted[0])
        assert torch.equal(correct, wanted[1])
        assert samples == wanted[2]
    assert inside


def test_the_lines_of_a_checkpoints_steps_are_on_the_disk_before_it(tmp_path, monkeypatch):
    """A process that is killed later goes on from there without a gap in them."""
    real_append, real_write, steps = MetricsLog.append, signed.write, []

    def slow(self, line):
        time.sleep(0.05)
        real_append(self, line)

    def write(content, path, links=()):
        there, length = (tmp_path / "run" / "metrics.jsonl").read_bytes(), content["metrics_bytes"]
        assert len(there) >= length, "the checkpoint is there before its lines"
        lines = [json.loads(line) for line in there[:length].splitlines()]
        steps.append(content["progress"]["step"])
        assert [line["step"] for line in lines if line["type"] == "step"] == [*range(1, steps[-1] + 1)]
        real_write(content, path, links)

    monkeypatch.setattr(recorder, "LOG_SECONDS", 0.0)
    monkeypatch.setattr(MetricsLog, "append", slow)
    monkeypatch.setattr(signed, "write", write)
    write_at_once(monkeypatch)
    assert start(tmp_path / "run", train__epochs="1", **EVERY_STEP) == 0
    assert steps == [*range(STEPS + 1), STEPS]


def test_a_failed_checkpoint_is_tried_again_each_minute_however_rare_checkpoints_are(tmp_path, monkeypatch):
    """By steps of 25 seconds: epoch 1's fails, at 125; the next step's, too; the third step after that is saved."""
    write_at_once(monkeypatch)
    steps_of_seconds(monkeypatch, 25)
    full_disk(monkeypatch, tmp_path / "run", range(1, 3))
    assert start(tmp_path / "run", run__checkpoint_minutes="1000", run__keep="100") == 0
    names = sorted(path.stem for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert [int(name.removeprefix("step-")) for name in names] == [0, STEPS + 4, 2 * STEPS, 3 * STEPS]


def test_the_time_of_a_run_is_that_of_all_its_processes(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_at(patch, STEPS + 2)
        steps_of_seconds(patch, 1000)
        assert start(tmp_path / "run") == 143
    assert resume(tmp_path / "run") == 0
    first, *others = (line["seconds"] for line in read_epochs(tmp_path / "run" / "metrics.jsonl"))
    assert 1000 * STEPS <= first < 1000 * (STEPS + 1)
    assert all(1000 * (STEPS + 2) <= seconds < 1000 * (STEPS + 3) for seconds in others)
    assert checkpoint.load(tmp_path / "run" / "last.pt").progress["seconds"] >= others[-1]
