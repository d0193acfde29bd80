"""Augmentation of a batch against slow loops over single pixels."""

import pytest
import torch

from mlaan.data.augment import CropFlip, normalise, pad_edges, random_crop, random_flip
from mlaan.errors import UserError


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def picture(shape, dtype=torch.uint8):
    return torch.randint(256, shape, generator=generator(9)).to(dtype)


def slow_padding(images, pad, edge):
    """The padded images, one pixel after the other, walking back from the border where it is mirrored."""
    count, channels, height, width = images.shape
    padded = torch.zeros(count, channels, height + 2 * pad, width + 2 * pad, dtype=images.dtype)
    for row in range(-pad, height + pad):
        for column in range(-pad, width + pad):
            inside = 0 <= row < height and 0 <= column < width
            if inside or edge == "reflect":
                source_row = -row if row < 0 else row if row < height else 2 * height - 2 - row
                source_column = -column if column < 0 else column if column < width else 2 * width - 2 - column
                padded[:, :, row + pad, column + pad] = images[:, :, source_row, source_column]
    return padded


@pytest.mark.parametrize("edge", ["zero", "reflect"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("height", "width", "pad"), [(5, 7, 2), (4, 4, 3), (3, 9, 0)])
def test_padding(edge, dtype, height, width, pad):
    images = picture((3, 2, height, width), dtype)
    padded = pad_edges(images, pad, edge)
    assert padded.dtype == dtype
    assert torch.equal(padded, slow_padding(images, pad, edge))


def test_reflect_padding_agrees_with_pytorch():
    images = picture((2, 3, 6, 5), torch.float32)
    assert torch.equal(pad_edges(images, 4, "reflect"), torch.nn.functional.pad(images, (4,) * 4, mode="reflect"))


def test_a_mirrored_edge_as_wide_as_the_image_is_refused():
    with pytest.raises(UserError, match="mirrored edge of 4 pixels needs images larger than that, not 9x4"):
        pad_edges(picture((1, 1, 9, 4)), 4, "reflect")


def shifts_of(cropped, padded, pad):
    """(top, left) of each cropped image within its padded one; fails unless there is exactly one."""
    height, width = cropped.shape[2:]
    found = []
    for small, large in zip(cropped, padded, strict=True):
        places = [
            (top, left)
            for top in range(2 * pad + 1)
            for left in range(2 * pad + 1)
            if torch.equal(small, large[:, top : top + height, left : left + width])
        ]
        assert len(places) == 1
        found += places
    return found


@pytest.mark.parametrize("edge", ["zero", "reflect"])
def test_every_crop_is_a_window_and_every_window_is_as_likely(edge):
    images = picture((900, 2, 6, 5))
    cropped = random_crop(images, 1, edge, generator())
    counts = {}
    for place in shifts_of(cropped, slow_padding(images, 1, edge), 1):
        counts[place] = counts.get(place, 0) + 1
    # Nine windows, 100 expected in each, standard deviation 9.4.
    assert len(counts) == 9
    assert min(counts.values()) > 60
    assert max(counts.values()) < 140


def test_flip_mirrors_whole_images_left_to_right_and_about_half_of_them():
    images = picture((400, 2, 3, 5))
    flipped = random_flip(images, generator())
    mirrored = torch.stack([torch.stack([image[..., 4 - column] for column in range(5)], -1) for image in images])
    is_same = (flipped == images).flatten(1).all(1)
    is_mirrored = (flipped == mirrored).flatten(1).all(1)
    assert bool((is_same ^ is_mirrored).all())
    assert 150 < int(is_mirrored.sum()) < 250


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_same_generator_same_images_and_the_input_stays(dtype):
    images = picture((32, 3, 8, 8), dtype)
    before = images.clone()
    change = CropFlip(pad=2, edge="reflect", flip=True)
    first, again, other = (change(images, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(images, before)
    assert (first.dtype, first.shape) == (dtype, images.shape)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_without_padding_and_flip_nothing_changes():
    images = picture((4, 1, 3, 3))
    assert CropFlip(pad=0, edge="zero", flip=False)(images, generator()) is images


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_normalise(dtype):
    images = picture((2, 2, 3, 3))
    mean, std = torch.tensor([0.3, 0.6]), torch.tensor([0.2, 0.5])
    got = normalise(images, mean, std, dtype)
    assert got.dtype == dtype
    for channel in range(2):
        expected = (images[:, channel].double() / 255 - float(mean[channel])) / float(std[channel])
        tolerance = 1e-6 if dtype == torch.float32 else 2.0**-7
        torch.testing.assert_close(got[:, channel].double(), expected, atol=tolerance, rtol=tolerance)
