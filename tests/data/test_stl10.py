"""STL-10 from small files in its own format."""

import pytest
import torch

from data.crops import assert_windows, pixels
from data.official_files import data_section, write_stl10
from mlaan.data import STL10, loaders
from mlaan.errors import UserError


def test_both_parts(tmp_path):
    written = write_stl10(tmp_path / "set")
    dataset, train, test = loaders(data_section(tmp_path, "stl10", tmp_path / "set", batch=4), "cpu", 0)
    assert (dataset.classes, dataset.image_shape) == (10, (3, 96, 96))
    assert dataset.mean == dataset.std == (0.5, 0.5, 0.5)
    for part, loader in ("train", train), ("test", test):
        assert torch.equal(loader.images, torch.from_numpy(written[part][0]))
        assert loader.labels.tolist() == written[part][1].tolist()
    (first, _) = test
    assert torch.equal(pixels(first.images, dataset), test.images[:4])
    assert float(first.images.min()) == pytest.approx(-1)
    assert float(first.images.max()) == pytest.approx(1)


def test_training_images_are_moved_by_up_to_four_black_pixels_and_mirrored(tmp_path):
    write_stl10(tmp_path / "set", train=20)
    dataset, train, _ = loaders(data_section(tmp_path, "stl10", tmp_path / "set", batch=20), "cpu", 0)
    assert_windows(dataset, train, pad=4, edge="zero", flip=True)


def test_defaults_are_those_of_the_recipe():
    assert (STL10().batch, STL10().augment, STL10().root) == (128, "crop_flip", "data/stl10")
    assert STL10(augment="none").augmentation() is None


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("train_X.bin", b"\x00" * 27647, "27647 bytes are no whole number of images of 27648"),
        ("test_X.bin", b"", "0 bytes are no whole number of images of 27648"),
        ("train_y.bin", b"\x01" * 9, "9 labels for 10 images"),
        ("test_y.bin", bytes(6), "labels from 0 to 0, expected 1 to 10"),
        ("test_y.bin", bytes([1, 2, 11, 3, 4, 5]), "labels from 1 to 11, expected 1 to 10"),
    ],
)
def test_damaged_files(tmp_path, name, content, fault):
    write_stl10(tmp_path)
    path = tmp_path / "stl10_binary" / name
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        STL10(root=str(tmp_path)).load()
    assert str(caught.value) == (
        f"{path} is damaged ({fault}): delete it and set data.download = true, or get it anew from "
        "http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz"
    )
