"""SVHN from small MATLAB files."""

import sys

import numpy as np
import pytest
import torch

from data.crops import assert_windows, pixels
from data.official_files import data_section, write_svhn
from mlaan.data import SVHN, loaders
from mlaan.errors import UserError

savemat = pytest.importorskip("scipy.io").savemat


def refused(root):
    with pytest.raises(UserError) as caught:
        SVHN(root=str(root)).load()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_both_parts(tmp_path):
    written = write_svhn(tmp_path / "set")
    dataset, train, test = loaders(data_section(tmp_path, "svhn", tmp_path / "set", batch=12), "cpu", 0)
    assert (dataset.classes, dataset.image_shape) == (10, (3, 32, 32))
    assert dataset.mean == dataset.std == (0.5, 0.5, 0.5)
    for part, loader in ("train", train), ("test", test):
        assert torch.equal(loader.images, torch.from_numpy(written[part][0]))
        assert loader.labels.tolist() == written[part][1].tolist()
    (batch,) = test
    assert torch.equal(pixels(batch.images, dataset), test.images)


def test_training_images_are_moved_by_up_to_two_black_pixels_and_never_mirrored(tmp_path):
    write_svhn(tmp_path / "set", train=200)
    dataset, train, _ = loaders(data_section(tmp_path, "svhn", tmp_path / "set", batch=200), "cpu", 0)
    assert_windows(dataset, train, pad=2, edge="zero", flip=False)


def test_defaults_are_those_of_the_recipe():
    assert (SVHN().batch, SVHN().augment, SVHN().root) == (1024, "crop", "data/svhn")
    assert SVHN(augment="none").augmentation() is None


X = np.zeros((32, 32, 3, 4), np.uint8)
Y = np.ones((4, 1), np.uint8)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ({"X": X}, "KeyError: 'y'"),
        ({"X": X[:28], "y": Y}, "'X' is uint8 of shape (28, 32, 3, 4), expected uint8 (32, 32, 3, N)"),
        ({"X": X.astype(float), "y": Y}, "'X' is float64 of shape (32, 32, 3, 4), expected uint8"),
        ({"X": X, "y": Y[:3]}, "3 labels for 4 images"),
        ({"X": X, "y": Y * 0}, "labels from 0 to 0, expected 1 to 10"),
        ({"X": X, "y": Y * 11}, "labels from 11 to 11, expected 1 to 10"),
    ],
    ids=["no-labels", "size", "floats", "count", "zero", "eleven"],
)
def test_wrong_content(tmp_path, content, fault):
    write_svhn(tmp_path)
    path = tmp_path / "train_32x32.mat"
    savemat(path, content)
    message = refused(tmp_path)
    assert message.startswith(f"{path} is damaged ({fault}")
    assert message.endswith("get it anew from http://ufldl.stanford.edu/housenumbers/train_32x32.mat")


@pytest.mark.parametrize("kept", [0, 50, 200, 20000])
def test_files_that_are_cut_off(tmp_path, kept):
    write_svhn(tmp_path)
    path = tmp_path / "test_32x32.mat"
    path.write_bytes(path.read_bytes()[:kept])
    message = refused(tmp_path)
    assert message.startswith(f"{path} is damaged (")
    assert message.endswith("get it anew from http://ufldl.stanford.edu/housenumbers/test_32x32.mat")


def test_without_scipy_the_error_says_what_to_install(tmp_path, monkeypatch):
    write_svhn(tmp_path)
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    assert refused(tmp_path) == "data.name = 'svhn' needs the package 'scipy': pip install scipy"
