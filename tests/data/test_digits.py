"""Scikit-learn's digits: grey levels, the fixed split, the shift."""

import sys

import numpy as np
import pytest
import torch

from mlaan.config import DataConfig
from mlaan.data import Digits
from mlaan.data.digits import stratified_split
from mlaan.errors import UserError

pytest.importorskip("sklearn")


@pytest.fixture(scope="module")
def dataset():
    return Digits().load()


def test_parts(dataset):
    assert dataset.image_shape == (1, 8, 8)
    assert (len(dataset.train_images), len(dataset.test_images), dataset.classes) == (1438, 359, 10)


def test_grey_levels_keep_their_order_and_fill_the_range(dataset):
    from sklearn.datasets import load_digits

    images = torch.cat([dataset.train_images, dataset.test_images])
    levels = images.unique().tolist()
    assert levels == [round(level * 255 / 16) for level in range(17)]
    sums = np.sort(load_digits().data.sum(1))
    back = (images.double() * 16 / 255).round().sum((1, 2, 3)).sort().values
    assert back.tolist() == sums.tolist()


def test_every_class_is_in_both_parts_in_the_same_share(dataset):
    train = torch.bincount(dataset.train_labels, minlength=10)
    test = torch.bincount(dataset.test_labels, minlength=10)
    assert bool(((test - 0.2 * (train + test)).abs() <= 0.5).all())


def test_no_image_is_in_both_parts_and_images_keep_their_labels(dataset):
    from sklearn.datasets import load_digits

    source = load_digits()
    train, test = stratified_split(source.target, 0.2)
    assert sorted([*train, *test]) == list(range(1797))
    assert dataset.test_labels.tolist() == source.target[test].tolist()
    assert torch.equal((dataset.test_images[:, 0].double() * 16 / 255).round(), torch.tensor(source.images[test]))
    assert torch.equal((dataset.train_images[:, 0].double() * 16 / 255).round(), torch.tensor(source.images[train]))


def test_the_split_is_this_one_for_ever():
    labels = np.arange(40) % 2
    train, test = stratified_split(labels, 0.2)
    assert test.tolist() == [2, 3, 16, 23, 35, 36, 37, 38]
    assert sorted([*train, *test]) == list(range(40))


def test_the_split_does_not_follow_the_global_seed(dataset):
    np.random.seed(7)
    torch.manual_seed(7)
    assert torch.equal(Digits().load().test_images, dataset.test_images)


def test_statistics_are_those_of_the_training_part(dataset):
    pixels = dataset.train_images.double() / 255
    assert dataset.mean[0] == pytest.approx(float(pixels.mean()), abs=1e-12)
    assert dataset.std[0] == pytest.approx(float(pixels.std(correction=0)), abs=1e-12)


def test_shift_moves_by_one_pixel_and_never_mirrors(dataset):
    change = Digits(augment="shift").augmentation()
    images = dataset.train_images[:200]
    shifted = change(images, torch.Generator().manual_seed(0))
    assert shifted.shape == images.shape
    assert not torch.equal(shifted, images)
    wide = torch.nn.functional.pad(images, (1, 1, 1, 1))
    windows = torch.stack([wide[:, :, y : y + 8, x : x + 8] for y in range(3) for x in range(3)])
    assert bool((windows == shifted).flatten(2).all(2).any(0).all())
    assert Digits(augment="none").augmentation() is None


def test_it_is_a_member():
    assert DataConfig.make("digits", batch=8) == Digits(batch=8)
    with pytest.raises(UserError, match=r"^data\.batch = 0 must be at least 1$"):
        Digits(batch=0)


def test_without_scikit_learn_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(UserError, match="needs the package 'scikit-learn': pip install scikit-learn"):
        Digits().load()
