"""The smallest real runs: resnet20 in two modules on a few made-up images of 8x8 pixels, a second each."""

from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from mlaan import checkpoint
from mlaan.cli import main
from mlaan.cli.settings import load_config
from mlaan.config import Config
from mlaan.observe.saver import Saver

SETTINGS = {
    "data.name": "synthetic",
    "data.size": "8",
    "data.channels": "1",
    "data.classes": "3",
    "data.images": "40",
    "data.test_images": "12",
    "data.batch": "8",
    "method.preset": "light",
    "partition.modules": "2",
    "optim.learning_rate": "0.05",
    "train.epochs": "3",
    "train.device": "cpu",
    "run.tensorboard": "false",
}
PICTURES = {
    "data.name": "imagenet",
    "method.preset": "light",
    "partition.modules": "2",
    "optim.learning_rate": "0.05",
    "train.epochs": "2",
    "train.device": "cpu",
    "run.tensorboard": "false",
}
"""A run over a folder of images; where they are, how many classes and how large is still to be said."""
STEPS = 5
"""Steps of an epoch under SETTINGS."""


def config(**changes: str) -> Config:
    """SETTINGS with changes; a key's dot is written as two underscores."""
    return load_config(None, list(_settings(changes).items()))


def flags(folder: Path, **changes: str) -> list[str]:
    """SETTINGS with changes as words of a command line that writes into `folder`."""
    settings = {**_settings(changes), "run.folder": str(folder)}
    return [word for key, value in settings.items() for word in (f"--{key}", value)]


def start(folder: Path, **changes: str) -> int:
    """A run's exit status. No picture is drawn: that takes longer than the training."""
    with mock.patch("mlaan.report.draw"):
        return main(["train", *flags(folder, **changes)])


def resume(folder: Path, *words: str) -> int:
    with mock.patch("mlaan.report.draw"):
        return main(["train", "--resume", str(folder), *words])


def final_state(folder: Path) -> list[tuple[str, Any]]:
    """Everything in a run's last checkpoint that a later step could depend on, as (path, value)."""
    saved = checkpoint.load(folder / "last.pt")
    progress = {key: value for key, value in saved.progress.items() if key != "seconds"}
    return list(_leaves({"engine": saved.engine, "loader": saved.loader, "progress": progress, "random": saved.random}))


def same(a: list[tuple[str, Any]], b: list[tuple[str, Any]]) -> bool:
    """Bit for bit."""
    return [key for key, _ in a] == [key for key, _ in b] and all(
        torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y for (_, x), (_, y) in zip(a, b, strict=True)
    )


def write_at_once(monkeypatch) -> None:
    """A run's checkpoints are on the disk before its next step, so none is put off.

    Otherwise which steps have one depends on how fast the disk is.
    """
    start_writing = Saver.start

    def start(self, content, step, *, is_best=False):
        start_writing(self, content, step, is_best=is_best)
        self.wait()

    monkeypatch.setattr(Saver, "start", start)


@pytest.fixture(autouse=True)
def one_thread():
    """What is compared bit for bit must run on the same number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _settings(changes: dict[str, str]) -> dict[str, str]:
    return {**SETTINGS, **{key.replace("__", "."): value for key, value in changes.items()}}


def _leaves(value: Any, path: str = ""):
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}")
    elif isinstance(value, list | tuple):
        for i, inner in enumerate(value):
            yield from _leaves(inner, f"{path}.{i}")
    else:
        yield path, value
