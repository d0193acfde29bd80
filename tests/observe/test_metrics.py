"""metrics.jsonl: what is in it at which moment."""

import errno
import json
import os

import pytest

from mlaan.errors import UserError
from mlaan.observe.metrics import MetricsLog, read_epochs


def write(log: MetricsLog, *records: dict) -> None:
    for one in records:
        log.append(log.encode(one))


def record(kind: str, epoch: int) -> dict:
    numbers = {"losses": {"0.classifier": 1.0 / epoch}, "top1": {"0.classifier": 0.5}, "learning_rate": 0.1}
    return {"type": kind, "epoch": epoch, "step": 10 * epoch, "test_top1": 0.25, **numbers}


def test_lines_are_in_the_file_at_once_and_read_back(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    for kind, epoch in (("step", 1), ("epoch", 1), ("epoch", 2)):
        write(log, record(kind, epoch))
    assert [json.loads(line)["type"] for line in path.read_text().splitlines()] == ["step", "epoch", "epoch"]
    assert read_epochs(path) == [record("epoch", 1), record("epoch", 2)]
    log.close()


def test_lines_after_the_checkpoint_are_cut_off(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    write(log, record("epoch", 1))
    length = log.length
    write(log, record("epoch", 2))
    log.close()
    log = MetricsLog(path, keep=length)
    assert log.lost == 0
    write(log, record("epoch", 3))
    log.close()
    assert [line["epoch"] for line in read_epochs(path)] == [1, 3]


class Pieces:
    """A file on a disk that takes a line in pieces of at most ten bytes, and only `room` bytes in all."""

    def __init__(self, file, room: int) -> None:
        self._file, self.room = file, room

    def write(self, data: bytes) -> int:
        if not self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        done = self._file.write(data[: min(10, self.room)])
        self.room -= done
        return done

    def __getattr__(self, name: str):
        return getattr(self._file, name)


def test_a_line_that_found_half_its_room_leaves_nothing_behind(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    size = len(log.encode(record("epoch", 1)))
    disk = Pieces(log._file, size + size // 2)
    monkeypatch.setattr(log, "_file", disk)
    write(log, record("epoch", 1))
    with pytest.raises(OSError, match="No space left"):
        write(log, record("epoch", 2))
    assert log.length == path.stat().st_size == size
    assert read_epochs(path) == [record("epoch", 1)]
    disk.room = 10 * size
    write(log, record("epoch", 2), record("epoch", 3))
    assert read_epochs(path) == [record("epoch", number) for number in (1, 2, 3)]
    assert log.length == path.stat().st_size
    log.close()


@pytest.mark.parametrize("torn", ["", '{"type": "ep'])
def test_missing_lines_are_counted_and_no_line_follows_half_of_one(tmp_path, torn):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f"{{}}\n{torn}")
    log = MetricsLog(path, keep=100)
    assert log.lost == 97
    write(log, record("epoch", 2))
    log.close()
    first, second = path.read_text().splitlines()
    assert (first, json.loads(second)["epoch"]) == ("{}", 2)


def test_nan_is_no_json(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    with pytest.raises(ValueError, match="JSON"):
        log.encode({"loss": float("nan")})
    log.close()


def test_a_line_cut_short_is_left_out_a_broken_one_is_told(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps(record("epoch", 1)) + '\n{"type": "ep')
    assert len(read_epochs(path)) == 1
    path.write_text("no json\n")
    with pytest.raises(UserError, match="not JSON"):
        read_epochs(path)
    with pytest.raises(UserError, match="cannot read"):
        read_epochs(tmp_path / "none")
