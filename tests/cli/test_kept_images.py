"""A run goes on with the images that it began with, whatever becomes of their folder meanwhile."""

import shutil
from pathlib import Path
from unittest import mock

import pytest

from data.imagenet_folder import make_folder
from mlaan.cli import main
from mlaan.data import dali
from mlaan.observe.metrics import read_epochs
from trainer.test_trainer import stop_at
from trainer.tiny import PICTURES, final_state, one_thread, resume, same

__all__ = ["one_thread"]

pytestmark = pytest.mark.filterwarnings("ignore:checking:RuntimeWarning")
SETTINGS = PICTURES | {"data.classes": "2", "data.size": "16", "data.batch": "8", "data.workers": "0"}


@pytest.fixture
def folder(tmp_path):
    """Not checked yet; 24 good images to train on, three batches an epoch, and bad ones."""
    return make_folder(tmp_path / "images", classes=2, train=24, val=6, sides=(20, 40)).root


def begin(run: Path, folder: Path, backend: str = "torchvision") -> int:
    given = SETTINGS | {"data.root": str(folder), "data.backend": backend, "run.folder": str(run)}
    with mock.patch("mlaan.report.draw"):
        return main(["train", *(word for key, value in given.items() for word in (f"--{key}", value))])


@pytest.mark.parametrize("backend", ["torchvision", "memory", "dali"])
def test_files_that_come_and_a_check_in_between_change_nothing(folder, tmp_path, monkeypatch, backend):
    if backend == "dali" and dali.why_not():
        pytest.skip("needs NVIDIA DALI")
    assert begin(tmp_path / "whole", folder, backend) == 0
    if backend == "dali":  # its own check made a list
        for part in "train", "val":
            (folder / part / ".mlaan-check.npz").unlink()
    with monkeypatch.context() as patch:
        stop_at(patch, 2)
        assert begin(tmp_path / "cut", folder, backend) == 143
    one = next(folder.glob("train/*/*_0.JPEG"))
    shutil.copy(one, one.with_name("another.JPEG"))
    (folder / "val" / one.parent.name / "another.JPEG").write_bytes(one.read_bytes())
    assert main(["data", "check", str(folder), "--workers", "1"]) == 0
    assert resume(tmp_path / "cut") == 0
    assert same(final_state(tmp_path / "cut"), final_state(tmp_path / "whole"))


def test_a_file_that_is_gone_is_left_out_and_counted(folder, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        stop_at(patch, 2)
        assert begin(tmp_path / "run", folder) == 143
    gone = next(folder.glob("train/*/*_1.JPEG"))
    gone.unlink()
    assert main(["data", "check", str(folder), "--workers", "1"]) == 0
    capsys.readouterr()
    assert resume(tmp_path / "run", "--train.epochs", "3") == 0
    assert f"left out, as it cannot be read: {gone}" in capsys.readouterr().out
    assert read_epochs(tmp_path / "run" / "metrics.jsonl")[-1]["left_out"] == 4, "that file and the three bad ones"


def test_the_images_of_a_test_are_counted(folder, tmp_path, capsys):
    assert begin(tmp_path / "run", folder) == 0
    assert [epoch["test_images"] for epoch in read_epochs(tmp_path / "run" / "metrics.jsonl")] == [7, 7]
    next(folder.glob("val/*/*_1.JPEG")).unlink()
    assert resume(tmp_path / "run", "--train.epochs", "3") == 0
    assert read_epochs(tmp_path / "run" / "metrics.jsonl")[-1]["test_images"] == 6
    capsys.readouterr()
    assert main(["eval", str(tmp_path / "run")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.endswith("right of 6 images)") for line in lines)
    assert "missing 4 of 10 test images could not be read" in lines


def test_a_folder_that_is_gone_is_told_before_any_work(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(folder.parent)
    assert begin(tmp_path / "run", Path(folder.name)) == 0
    monkeypatch.chdir("/")
    assert resume(tmp_path / "run", "--train.epochs", "3") == 2
    assert capsys.readouterr().err == (
        f"mlaan: {folder.name}/train is not there (looked for below the present folder, /): where the images are now "
        "says --data.root DIR\n"
    )
    assert resume(tmp_path / "run", "--train.epochs", "3", "--data.root", str(folder)) == 0


def test_the_folder_may_move_and_the_backend_change(folder, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_at(patch, 4)
        assert begin(tmp_path / "run", folder) == 143
    assert begin(tmp_path / "whole", folder) == 0
    folder.rename(tmp_path / "moved")
    words = ["--data.root", str(tmp_path / "moved"), "--data.backend", "memory"]
    assert resume(tmp_path / "run", *words) == 0
    assert same(final_state(tmp_path / "run"), final_state(tmp_path / "whole"))


def test_what_cannot_go_on_says_what_to_do(folder, tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_at(patch, 2)
        assert begin(run, folder) == 143
    if not dali.why_not():
        assert resume(run, "--data.backend", "dali") == 2
        assert "go on with data.backend = 'torchvision'" in capsys.readouterr().err
    assert main(["data", "pack", str(folder), str(tmp_path / "packed"), "--workers", "1"]) == 0
    assert resume(run, "--data.root", str(tmp_path / "packed"), "--data.backend", "auto") == 2
    assert (
        "data.root and data.backend give other images than those that the saved run began with"
        in capsys.readouterr().err
    )
    (run / "images.npz").write_bytes((run / "images.npz").read_bytes()[:200])
    assert resume(run) == 2
    assert f"{run / 'images.npz'} is damaged" in capsys.readouterr().err
    (run / "images.npz").unlink()
    assert resume(run) == 0, "the folder is as it was"
