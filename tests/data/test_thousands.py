"""A folder of some thousand images: every backend shows the same, names the same bad files, and ends."""

import pytest
import torch

from data.imagenet_folder import BAD, make_folder
from data.test_backends import FROM_FILES, gather
from mlaan.cli import main
from mlaan.data import ImageNet, dali, loaders

TRAIN, VAL, CLASSES = 2400, 600, 8

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """(what was made, {backend: data.root}), checked and packed by the commands."""
    root = tmp_path_factory.mktemp("thousands")
    made = make_folder(root / "folder", classes=CLASSES, train=TRAIN, val=VAL)
    assert main(["data", "check", str(made.root)]) == 0
    for form in "jpeg", "uint8":
        words = ["--format", form, "--size", "512", "--quality", "95", "--shard-mb", "8"]
        assert main(["data", "pack", str(made.root), str(root / form), *words]) == 0
    return made, {name: root / name.split()[1] if " " in name else made.root for name in FROM_FILES}


def epoch(folders, name):
    """Images and labels of a training epoch and of a test, and how many files the notes leave out."""
    _, roots = folders
    backend = name.split()[0]
    settings = ImageNet(root=str(roots[name]), backend=backend, classes=CLASSES, size=64, batch=48, workers=2)
    found = loaders(settings, "cpu", 1)
    assert sum("4 " in note and "left out" in note for note in found.notes) == 2
    parts = [gather(found.train), gather(found.test)]
    assert not found.train.stats.left_out
    assert not found.test.stats.left_out
    return parts


@pytest.fixture(scope="module")
def reference(folders):
    return epoch(folders, "torchvision")


@pytest.mark.parametrize("name", FROM_FILES[1:])
def test_every_backend_gives_the_same_labels_and_nearly_the_same_images(folders, reference, name):
    if name == "dali" and dali.why_not():
        pytest.skip("needs NVIDIA DALI")
    made, _ = folders
    assert [len(labels) for _, labels in reference] == [TRAIN, VAL]
    for (images, labels), (wanted, right) in zip(epoch(folders, name), reference, strict=True):
        assert torch.equal(labels, right)
        levels = (images - wanted).abs() * 0.225 * 255
        assert levels.flatten(1).mean(1).max() < 4
        assert levels.mean() < 0.5
    assert torch.equal(reference[1][1], torch.tensor(sorted(made.good["val"].values())))


def test_every_bad_file_is_named(folders, capsys):
    made, _ = folders
    capsys.readouterr()
    assert main(["data", "check", str(made.root)]) == 0
    said = capsys.readouterr().out.splitlines()
    kinds = dict(zip(BAD, ("empty", "truncated", "no image", "tiny"), strict=True))
    for path, kind in made.bad.items():
        assert f"left out, {kinds[kind]}: {made.root / path}" in said
