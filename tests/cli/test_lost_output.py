"""A run whose output nobody takes any more: the run itself goes on."""

import subprocess
import sys
from pathlib import Path

import pytest

from mlaan.observe.metrics import read_epochs
from trainer.tiny import flags


def train(folder: Path, **streams) -> subprocess.Popen[str]:
    words = [sys.executable, "-m", "mlaan.cli", "train", *flags(folder)]
    return subprocess.Popen(words, text=True, **streams)


def require_whole(folder: Path) -> None:
    assert [epoch["epoch"] for epoch in read_epochs(folder / "metrics.jsonl")] == [1, 2, 3]
    assert (folder / "report.png").exists()


def test_the_reader_of_a_pipe_goes_away(tmp_path):
    """As in `mlaan train | tee log` when tee is killed."""
    process = train(tmp_path / "run", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout
    assert process.stdout.readline().startswith("resnet20 by mlaan")
    process.stdout.close()
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert said == "mlaan: stdout cannot be written (Broken pipe): the run goes on; see its metrics.jsonl\n"
    require_whole(tmp_path / "run")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full is Linux's")
def test_the_disk_of_a_log_is_full(tmp_path):
    with open("/dev/full", "w") as full:
        process = train(tmp_path / "run", stdout=full, stderr=subprocess.PIPE)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert said == "mlaan: stdout cannot be written (No space left on device): the run goes on; see its metrics.jsonl\n"
    require_whole(tmp_path / "run")


def test_nobody_takes_anything(tmp_path):
    with open("/dev/full", "w") as full:
        process = train(tmp_path / "run", stdout=full, stderr=full)
    assert process.wait(timeout=120) == 0
    require_whole(tmp_path / "run")


def test_without_stdout_and_stderr_at_all(tmp_path):
    """As a daemon starts it."""
    words = [sys.executable, "-m", "mlaan.cli", "train", *flags(tmp_path / "run")]
    done = subprocess.run(["sh", "-c", 'exec "$@" >&- 2>&-', "sh", *words], timeout=120)
    assert done.returncode == 0
    require_whole(tmp_path / "run")


def test_a_command_whose_answer_cannot_be_written_says_so_in_one_line():
    words = [sys.executable, "-m", "mlaan.cli", "plan", "--model.name", "resnet20", "--data.name", "synthetic"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (2, "mlaan: cannot write: No space left on device: make room there\n")
