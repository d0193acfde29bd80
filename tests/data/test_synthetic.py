"""Made-up images: their sizes, and that a class can be told from its pattern."""

import pytest
import torch

from mlaan.data import Synthetic
from mlaan.errors import UserError


@pytest.mark.parametrize(
    ("channels", "size", "classes"),
    [(3, 32, 10), (1, 7, 3), (2, 1, 2)],
    ids=["C3-S32-K10", "C1-S7-K3", "C2-S1-K2"],
)
def test_sizes(channels, size, classes):
    source = Synthetic(images=25, test_images=7, channels=channels, size=size, classes=classes)
    data = source.load()
    assert data.train_images.shape == (25, channels, size, size)
    assert data.test_images.shape == (7, channels, size, size)
    assert data.classes == classes
    assert source.augmentation() is None


def test_every_call_gives_the_same_images():
    one = Synthetic().load()
    torch.manual_seed(3)
    other = Synthetic().load()
    assert torch.equal(one.train_images, other.train_images)
    assert torch.equal(one.test_labels, other.test_labels)


def test_classes_are_equally_frequent_and_mixed():
    labels = Synthetic(images=1000).load().train_labels
    assert torch.bincount(labels).tolist() == [100] * 10
    assert labels.unique_consecutive().numel() > 500


def test_test_images_are_told_by_the_nearest_class_mean_of_the_training_images():
    data = Synthetic().load()
    train, test = data.train_images.flatten(1).double(), data.test_images.flatten(1).double()
    means = torch.stack([train[data.train_labels == label].mean(0) for label in range(10)])
    guess = torch.cdist(test, means).argmin(1)
    assert (guess == data.test_labels).double().mean() > 0.95
    assert not torch.equal(data.train_images[:256], data.test_images)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"batch": 0}, "data.batch = 0 must be at least 1"),
        ({"images": 0}, "data.images = 0 must be at least 1"),
        ({"test_images": -1}, "data.test_images = -1 must be at least 1"),
        ({"channels": 0}, "data.channels = 0 must be at least 1"),
        ({"size": 0}, "data.size = 0 must be at least 1"),
        ({"classes": 1}, "data.classes = 1 must be at least 2"),
    ],
)
def test_fields_out_of_range(fields, message):
    with pytest.raises(UserError) as caught:
        Synthetic(**fields)
    assert str(caught.value) == message
