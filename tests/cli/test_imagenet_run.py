"""The headline command, on a CPU with small images: every way of loading them, and what it learns."""

import shlex
from pathlib import Path
from unittest import mock

import pytest
import torch

from data.imagenet_folder import make_folder
from mlaan import checkpoint
from mlaan.cli import main
from mlaan.observe.metrics import read_epochs
from trainer.test_trainer import stop_at

CONFIGS = Path(__file__).parents[2] / "configs" / "imagenet"
STEPS = 3


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("imagenet")
    made = make_folder(root / "folder", classes=4, train=160, val=40)
    folder = str(made.root)
    assert main(["data", "check", folder, "--workers", "1"]) == 0
    assert main(["data", "pack", folder, str(root / "packed"), "--size", "73", "--workers", "1"]) == 0
    return {"packed": root / "packed"} | dict.fromkeys(("torchvision", "memory", "synthetic", "dali"), made.root)


def train(words: str, config: str = "resnet50_k4", size: int = 64) -> int:
    file = CONFIGS / f"{config}.toml"
    with mock.patch("mlaan.report.draw"):
        return main(
            ["train", "--config", str(file), "--train.device", "cpu", "--data.size", f"{size}", *shlex.split(words)]
        )


@pytest.mark.parametrize("backend", ["torchvision", "packed", "memory", "synthetic", "dali"])
def test_the_headline_command_trains_with_every_backend(folders, tmp_path, monkeypatch, capsys, backend):
    if backend == "dali":
        pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    stop_at(monkeypatch, STEPS)
    run, root = tmp_path / "run", folders[backend]
    data = f"--data.root {root} --data.backend {backend} --data.classes 4 --data.batch 8 --data.workers 1"
    assert train(f"{data} --run.folder {run} --run.tensorboard false") == 143
    saved = checkpoint.load(run / "last.pt")
    assert saved.progress["step"] == STEPS
    assert all(torch.isfinite(value).all() for value in saved.engine["backbone"].values())
    capsys.readouterr()
    assert main(["eval", str(run), "--data.batch", "50"]) == 0
    assert f"of {200 if backend == 'synthetic' else 40} images)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("resnet50_k4_modern", "--data.batch 40 --data.start_size 16 --data.grow_epochs 1 --optim.learning_rate 0.01"),
        ("resnet50_k4_large_batch", "--data.batch 40 --train.accumulate 4 --optim.learning_rate 0.5"),
    ],
)
def test_its_other_recipes_go_through_an_epoch_and_its_test(folders, tmp_path, config, words):
    """With few images, and those of the modern one growing from 16 to 32 pixels in the second epoch."""
    run = tmp_path / "run"
    words += f" --data.root {folders['packed']} --data.classes 4 --data.workers 0 --train.epochs 2 --run.folder {run}"
    assert train(f"{words} --optim.warmup_epochs 0 --train.test_every 2", config, 32) == 0
    first, last = read_epochs(run / "metrics.jsonl")
    assert [first["step"], last["step"]] == [4, 8]
    assert last["test_loss"] > 0


def test_the_headline_command_learns(folders, tmp_path):
    """90 % of images it has not seen, of the classes of a small set."""
    run = tmp_path / "run"
    words = f"--data.root {folders['packed']} --data.classes 4 --data.batch 16 --optim.learning_rate 0.02"
    assert train(f"{words} --train.epochs 6 --train.test_every 6 --optim.warmup_epochs 1 --run.folder {run}") == 0
    assert read_epochs(run / "metrics.jsonl")[-1]["test_top1"] >= 0.9
