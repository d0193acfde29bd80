"""TensorBoard shows what metrics.jsonl holds, also after a run went back or was resumed."""

import errno
import json
import os
import threading
from pathlib import Path

import pytest

pytest.importorskip("tensorboard", reason="tensorboard is not installed")

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer

from mlaan.observe import recorder
from mlaan.observe.log_writer import LogWriter
from mlaan.observe.metrics import MetricsLog, TensorBoardLog
from trainer.test_incident_details import spoil
from trainer.test_trainer import stop_at
from trainer.tiny import one_thread, resume, start

__all__ = ["one_thread"]
LOSS = "losses/0.classifier"


@pytest.fixture(autouse=True)
def first_files(monkeypatch):
    """Files of one second are read by their numbers, as words: 10 before 9."""
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(0))


def line(step: int, loss: float = 1.0) -> dict:
    return {"type": "step", "step": step, "losses": {"0.classifier": loss}}


def shown(folder: Path, tag: str = LOSS) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in EventAccumulator(str(folder)).Reload().Scalars(tag)]


def steps(folder: Path) -> list[int]:
    return [step for step, _ in shown(folder)]


@pytest.fixture
def logs(tmp_path):
    said: list[str] = []
    writer = LogWriter(MetricsLog(tmp_path / "metrics.jsonl"), TensorBoardLog(tmp_path / "events", 0), said.append)
    return writer, said


def test_all_numbers_of_a_line_are_shown(tmp_path, logs):
    names = ["learning_rate", "images_per_second", "data_wait", "memory_bytes", "test_loss", "test_top1", "test_top5"]
    groups = {"losses": {"0.classifier": 0.5}, "top1": {"0.classifier": 0.25}, "loss_scales": {"0.classifier": 1024.0}}
    numbers = {name: float(place) for place, name in enumerate(names)}
    logs[0].write({"type": "epoch", "epoch": 1, "step": 10, **numbers, **groups})
    logs[0].write(line(20))
    logs[0].close()
    wanted = numbers | {f"{group}/{name}": value for group, of in groups.items() for name, value in of.items()}
    assert set(EventAccumulator(str(tmp_path / "events")).Reload().Tags()["scalars"]) == set(wanted)
    for tag, value in wanted.items():
        assert shown(tmp_path / "events", tag) == [(10, value), *([(20, 1.0)] if tag == LOSS else [])]


@pytest.mark.parametrize("step", [0, 2])
def test_a_process_that_goes_on_hides_the_later_steps_of_the_one_before(tmp_path, step):
    for first, last in ((1, 4), (step + 1, 5)):
        log = TensorBoardLog(tmp_path, first - 1)
        for number in range(first, last + 1):
            log.write(line(number, loss=last))
        log.close()
    assert shown(tmp_path) == [(number, 4 if number <= step else 5) for number in range(1, 6)]


@pytest.mark.parametrize("step", [0, 2])
@pytest.mark.parametrize("goes_on", [True, False])
def test_lines_that_were_taken_back_are_hidden(tmp_path, logs, step, goes_on):
    writer, _ = logs
    lengths = [0]
    for number in (1, 2, 3, 4):
        writer.write(line(number))
        lengths.append(writer.length)
    writer.flush(writer.length)
    writer.go_back(lengths[step], step)
    again = range(step + 1, 6) if goes_on else ()
    for number in again:
        writer.write(line(number, loss=2.0))
    writer.close()
    wanted = [(number, 1.0) for number in range(1, step + 1)] + [(number, 2.0) for number in again]
    lines = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert [(line["step"], line["losses"]["0.classifier"]) for line in lines] == wanted
    assert shown(tmp_path / "events") == wanted


def test_a_slow_tensorboard_holds_up_no_step_and_then_goes_back_as_often_as_the_run_did(tmp_path, logs, monkeypatch):
    writer, _ = logs
    real, is_busy, goes_on = TensorBoardLog.write, threading.Event(), threading.Event()

    def write(self, record):
        if record["step"] == 3:
            is_busy.set()
            assert goes_on.wait(30), "a step waited for TensorBoard"
        real(self, record)

    monkeypatch.setattr(TensorBoardLog, "write", write)
    lengths = [0]
    for number in (1, 2, 3):
        writer.write(line(number))
        lengths.append(writer.length)
    assert is_busy.wait(30)
    writer.go_back(lengths[1], 1)
    writer.write(line(2, loss=2.0))
    writer.go_back(writer.length, 2)
    assert not goes_on.is_set()
    goes_on.set()
    writer.write(line(3, loss=2.0))
    writer.close()
    assert shown(tmp_path / "events") == [(1, 1.0), (2, 2.0), (3, 2.0)]


@pytest.mark.parametrize("name", ["write", "go_back", "close"])
def test_a_full_disk_ends_the_events_alone(tmp_path, logs, monkeypatch, name):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(TensorBoardLog, name, full)
    writer, said = logs
    writer.write(line(1))
    writer.go_back(writer.length, 1)
    writer.write(line(2))
    writer.close()
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2
    assert said == ["the TensorBoard logs end here ([Errno 28] No space left on device); metrics.jsonl has the rest"]


@pytest.mark.parametrize("how", ["taken back", "resumed"])
def test_a_run_shows_the_lines_of_its_metrics(tmp_path, monkeypatch, how):
    monkeypatch.setattr(recorder, "LOG_SECONDS", 0.0)
    settings = {"run__tensorboard": "true", "train__epochs": "1", "run__on_nan": "rollback"}
    with monkeypatch.context() as patch:
        if how == "taken back":
            spoil(patch, {3})
        else:
            stop_at(patch, 3)
        assert start(tmp_path / "run", **settings) == (0 if how == "taken back" else 143)
    if how == "resumed":
        assert resume(tmp_path / "run") == 0
    lines = [json.loads(text) for text in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) >= 5
    name = next(iter(lines[0]["losses"]))
    found = shown(tmp_path / "run" / "tensorboard", f"losses/{name}")
    assert [step for step, _ in found] == [line["step"] for line in lines]
    assert [value for _, value in found] == pytest.approx([line["losses"][name] for line in lines])
