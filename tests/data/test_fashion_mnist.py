"""Fashion-MNIST from small files in its own format."""

import numpy as np
import pytest
import torch

from data.idx_files import NAMES, idx_bytes, write_set
from mlaan.config import DataConfig
from mlaan.data import FashionMNIST
from mlaan.errors import UserError


def refused(root, **fields):
    with pytest.raises(UserError) as caught:
        FashionMNIST(root=str(root), **fields).load()
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("zipped", [False, True])
def test_reads_all_four_files(tmp_path, zipped):
    arrays = write_set(tmp_path, zipped=zipped)
    data = FashionMNIST(root=str(tmp_path)).load()
    assert data.image_shape == (1, 28, 28)
    assert np.array_equal(data.train_images[:, 0].numpy(), arrays["train-images-idx3-ubyte"])
    assert np.array_equal(data.test_images[:, 0].numpy(), arrays["t10k-images-idx3-ubyte"])
    assert data.train_labels.tolist() == arrays["train-labels-idx1-ubyte"].tolist()
    assert data.test_labels.tolist() == arrays["t10k-labels-idx1-ubyte"].tolist()
    assert data.mean[0] == pytest.approx(arrays["train-images-idx3-ubyte"].mean() / 255)
    assert data.std[0] == pytest.approx(arrays["train-images-idx3-ubyte"].std() / 255)


def test_a_subset_is_fixed_and_contained_in_larger_ones(tmp_path):
    write_set(tmp_path, train=200)
    small, again, large, whole = (
        FashionMNIST(root=str(tmp_path), train_images=count).load() for count in (12, 12, 60, 0)
    )
    assert torch.equal(small.train_images, again.train_images)
    assert torch.equal(small.train_images, large.train_images[:12])
    assert not torch.equal(small.train_images, whole.train_images[:12])
    assert (len(small.train_images), len(large.train_images), len(whole.train_images)) == (12, 60, 200)
    for image, label in zip(large.train_images, large.train_labels, strict=True):
        place = (whole.train_images == image).flatten(1).all(1).nonzero()
        assert whole.train_labels[place].tolist() == [[int(label)]]
    assert (small.mean, small.std) == (whole.mean, whole.std)
    assert torch.equal(small.test_images, whole.test_images)


def test_a_missing_folder_names_the_package_the_page_and_the_setting(tmp_path):
    root = tmp_path / "none"
    message = refused(root)
    assert message.startswith(f"data.root = '{root}' is not a folder: ")
    for part in (
        "apt-get install dataset-fashion-mnist",
        "github.com/zalandoresearch/fashion-mnist",
        "data.root",
    ):
        assert part in message


@pytest.mark.parametrize("name", NAMES.values())
def test_a_missing_file_is_named(tmp_path, name):
    write_set(tmp_path)
    (tmp_path / name).unlink()
    message = refused(tmp_path)
    assert message.startswith(f"{tmp_path} holds neither {name} nor {name}.gz; get the files with `apt-get")


@pytest.mark.parametrize("name", NAMES.values())
def test_a_damaged_file_is_named(tmp_path, name):
    write_set(tmp_path)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-1])
    assert refused(tmp_path).startswith(f"{tmp_path / name} is cut off: ")


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        (NAMES["train", 3], np.zeros((30, 32, 28)), "holds images of 32x28 pixels, expected 28x28; get"),
        (NAMES["train", 3], np.zeros((0, 28, 28)), "holds no images; get"),
        (NAMES["train", 1], np.zeros(29), "holds 29 labels, expected 30 as in train-images-idx3-ubyte; get"),
        (NAMES["t10k", 1], np.full(10, 10), "holds the label 10, expected 0 to 9; get"),
    ],
)
def test_files_that_are_not_this_data_set(tmp_path, name, array, message):
    write_set(tmp_path)
    (tmp_path / name).write_bytes(idx_bytes(array))
    assert refused(tmp_path).startswith(f"{tmp_path / name} {message}")


def test_more_images_than_there_are(tmp_path):
    write_set(tmp_path)
    message = "data.train_images = 31 is more than there are, 30: set data.train_images = 0 for all"
    assert refused(tmp_path, train_images=31) == message


def test_fields_out_of_range():
    with pytest.raises(UserError, match=r"^data\.train_images = -1 must not be negative; 0 means all$"):
        FashionMNIST(train_images=-1)
    with pytest.raises(UserError, match=r"^data\.batch = 0 must be at least 1$"):
        FashionMNIST(batch=0)


def test_augmentations():
    images = torch.randint(256, (64, 1, 28, 28), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    assert FashionMNIST(augment="none").augmentation() is None
    flipped = FashionMNIST(augment="flip").augmentation()(images, torch.Generator().manual_seed(0))
    is_kept = (flipped == images).flatten(1).all(1)
    assert 0 < int(is_kept.sum()) < 64
    assert torch.equal(flipped[~is_kept], images[~is_kept].flip(3))
    wide = torch.nn.functional.pad(torch.cat([images, images.flip(3)]), (2, 2, 2, 2))
    windows = torch.stack([wide[:, :, y : y + 28, x : x + 28] for y in range(5) for x in range(5)])
    cropped = FashionMNIST(augment="crop_flip").augmentation()(images, torch.Generator().manual_seed(0))
    assert cropped.shape == images.shape
    assert not torch.equal(cropped, images)
    for index, image in enumerate(cropped):
        assert bool((windows[:, [index, index + 64]] == image).flatten(2).all(2).any())


def test_it_is_a_member_and_its_folder_may_start_at_home(tmp_path, monkeypatch):
    write_set(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(DataConfig.make("fashion_mnist", root="~").load().train_images) == 30
