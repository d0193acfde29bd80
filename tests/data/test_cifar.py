"""CIFAR-10 and CIFAR-100 from small files as Python 2 pickled them."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from data.crops import assert_windows
from data.official_files import (
    CIFAR10_FILES,
    data_section,
    pictures,
    python2_pickle,
    write_cifar10,
    write_cifar100,
)
from mlaan.data import CIFAR10, CIFAR100, loaders
from mlaan.errors import UserError

WRITERS = {"cifar10": (write_cifar10, CIFAR10_FILES), "cifar100": (write_cifar100, ["train", "test"])}


def refused(root):
    with pytest.raises(UserError) as caught:
        CIFAR10(root=str(root), download=False).load()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(("name", "classes"), [("cifar10", 10), ("cifar100", 100)])
def test_both_parts(tmp_path, name, classes):
    write, files = WRITERS[name]
    written = write(tmp_path / "set")
    dataset, train, test = loaders(data_section(tmp_path, name, tmp_path / "set", batch=4), "cpu", 0)
    assert (dataset.classes, dataset.image_shape) == (classes, (3, 32, 32))
    images, labels = (np.concatenate(parts) for parts in zip(*(written[file] for file in files[:-1]), strict=True))
    assert torch.equal(train.images, torch.from_numpy(images))
    assert train.labels.tolist() == labels.tolist()
    assert torch.equal(test.images, torch.from_numpy(written[files[-1]][0]))
    assert test.labels.tolist() == written[files[-1]][1].tolist()
    if name == "cifar100":
        assert labels.max() > 20, "or coarse labels would do"


def test_what_the_network_sees(tmp_path):
    written = write_cifar10(tmp_path / "set")
    _, _, test = loaders(data_section(tmp_path, "cifar10", tmp_path / "set", batch=20), "cpu", 0)
    (batch,) = test
    mean, std = (np.array(values)[:, None, None] for values in ((125.3, 123.0, 113.9), (63.0, 62.1, 66.7)))
    expected = (written["test_batch"][0].astype(np.float64) - mean) / std
    torch.testing.assert_close(batch.images.double(), torch.from_numpy(expected), atol=1e-5, rtol=0)


def test_training_images_are_moved_by_up_to_four_mirrored_pixels_and_mirrored(tmp_path):
    write_cifar10(tmp_path / "set", count=40)
    dataset, train, _ = loaders(data_section(tmp_path, "cifar10", tmp_path / "set", batch=200), "cpu", 0)
    assert_windows(dataset, train, pad=4, edge="reflect", flip=True)


def test_defaults_are_those_of_the_recipe():
    for member in CIFAR10, CIFAR100:
        assert (member().batch, member().augment, member().root) == (1024, "crop_flip", f"data/{member.name}")
    assert CIFAR10(augment="none").augmentation() is None


def test_pickles_of_python_3_are_read_too(tmp_path):
    written = write_cifar10(tmp_path)
    images, labels = written["data_batch_3"]
    entries = {"data": images.reshape(len(images), -1), "labels": labels.tolist()}
    (tmp_path / "cifar-10-batches-py/data_batch_3").write_bytes(pickle.dumps(entries))
    assert torch.equal(CIFAR10(root=str(tmp_path)).load().train_images[40:60], torch.from_numpy(images))


@pytest.mark.parametrize("protocol", [3, 4])
def test_names_may_be_bytes(tmp_path, protocol):
    """As where Python 3 read the official files with encoding="bytes" and wrote them again."""
    for write, member, file, key in (
        (write_cifar10, CIFAR10, "cifar-10-batches-py/test_batch", b"labels"),
        (write_cifar100, CIFAR100, "cifar-100-python/test", b"fine_labels"),
    ):
        images, labels = write(tmp_path)[Path(file).name]
        entries = {b"batch_label": b"one", key: labels.tolist(), b"data": images.reshape(len(images), -1)}
        (tmp_path / file).write_bytes(pickle.dumps(entries, protocol=protocol))
        dataset = member(root=str(tmp_path), download=False).load()
        assert torch.equal(dataset.test_images, torch.from_numpy(images))
        assert dataset.test_labels.tolist() == labels.tolist()


def test_a_pickle_that_runs_code_does_not_run(tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "exploded"),)

    write_cifar10(tmp_path)
    (tmp_path / "cifar-10-batches-py/test_batch").write_bytes(pickle.dumps({"data": Bomb(), "labels": []}))
    assert "it asks for posix.mkdir, which no CIFAR file needs" in refused(tmp_path)
    assert not (tmp_path / "exploded").exists()


ROWS = pictures(3, 32, 0).reshape(3, -1)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (python2_pickle({"data": ROWS, "labels": [0, 1, 2]})[:-4000], "UnpicklingError: pickle data was truncated"),
        (b"", "EOFError: Ran out of input"),
        (b"\x00" * 100, "UnpicklingError: invalid load key"),
        (python2_pickle({"data": ROWS, "other": [0, 1, 2]}), "KeyError: 'labels'"),
        (python2_pickle({"data": ROWS[:, :9], "labels": [0, 1, 2]}), "'data' is no uint8 array of N rows of 3072"),
        (python2_pickle({"data": [1], "labels": [0]}), "'data' is no uint8 array of N rows of 3072"),
        (python2_pickle({"data": ROWS, "labels": [0, 1]}), "3 images and labels of shape (2,)"),
        (python2_pickle({"data": ROWS, "labels": [0, 10, 2]}), "labels from 0 to 10, expected 0 to 9"),
    ],
    ids=["cut", "empty", "zeros", "no-labels", "size", "no-array", "count", "range"],
)
def test_damaged_files(tmp_path, content, fault):
    write_cifar10(tmp_path)
    path = tmp_path / "cifar-10-batches-py/data_batch_2"
    path.write_bytes(content)
    message = refused(tmp_path)
    assert message.startswith(f"{path} is damaged ({fault}")
    assert message.endswith(
        ": delete it and set data.download = true, or get it anew from "
        "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
    )
