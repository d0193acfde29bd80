"""What an older version wrote: settings that came later are not in it, and had their defaults then."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from mlaan import checkpoint
from mlaan.checkpoint import Checkpoint
from mlaan.cli import main
from mlaan.run_folder import RunFolder
from trainer.tiny import one_thread, resume, start

__all__ = ["one_thread"]
NEWER = re.compile(r"^(average|on_nan|workers|grow_epochs) = .*\n", re.MULTILINE)


@pytest.fixture
def older(tmp_path) -> Path:
    """A run whose config.toml and checkpoints know nothing of some settings."""
    assert start(tmp_path / "run", train__epochs="1") == 0
    folder = RunFolder(tmp_path / "run")
    text = folder.config.read_text()
    without, count = NEWER.subn("", text)
    assert count >= 2
    folder.config.write_text(without)
    for path in {path.resolve() for path in folder.newest()} | {folder.last}:
        saved: Checkpoint = checkpoint.load(path)
        checkpoint.save(replace(saved, config=NEWER.sub("", saved.config)), path)
    return folder.path


def test_a_run_goes_on(older):
    assert resume(older, "--train.epochs", "2") == 0
    assert checkpoint.load(older / "last.pt").progress["epoch"] == 2


@pytest.mark.parametrize("words", [["eval"], ["export", "--format", "safetensors"]])
def test_its_network_is_read(older, words):
    command, *options = words
    assert main([command, str(older / "last.pt"), *options]) == 0


def test_settings_that_no_longer_are_one_line_that_names_the_file(older, capsys):
    last = older / "last.pt"
    saved = checkpoint.load(last)
    checkpoint.save(replace(saved, config=saved.config.replace("[train]\n", "[train]\nwarp = 9\n")), last)
    assert main(["eval", str(last)]) == 2
    assert f"unknown key 'train.warp' in {last}" in capsys.readouterr().err
    assert resume(older, "--train.epochs", "2") == 2
    assert f"unknown key 'train.warp' in {last}" in capsys.readouterr().err
