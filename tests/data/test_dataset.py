"""A data set whose parts do not fit together is refused with what was found."""

import pytest
import torch

from mlaan.data import Dataset
from mlaan.data.dataset import channel_statistics
from mlaan.errors import UserError

IMAGES = torch.zeros(6, 3, 5, 4, dtype=torch.uint8)
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])


def make(**changes):
    parts = {
        "train_images": IMAGES,
        "train_labels": LABELS,
        "test_images": IMAGES[:2],
        "test_labels": LABELS[:2],
        "classes": 3,
        "mean": (0.1, 0.2, 0.3),
        "std": (1.0, 1.0, 1.0),
    }
    return Dataset(**(parts | changes))


def test_image_shape_is_channels_height_width():
    assert make().image_shape == (3, 5, 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"train_images": IMAGES.float()},
            "train_images must be uint8 of shape (N, C, H, W), not torch.float32 of shape (6, 3, 5, 4)",
        ),
        (
            {"test_images": IMAGES[0]},
            "test_images must be uint8 of shape (N, C, H, W), not torch.uint8 of shape (3, 5, 4)",
        ),
        ({"train_images": IMAGES[:0]}, "train_images of shape (0, 3, 5, 4) must not be empty"),
        (
            {"train_labels": LABELS.int()},
            "train_labels must be int64 of shape (N,), not torch.int32 of shape (6,)",
        ),
        (
            {"test_labels": LABELS[:2, None]},
            "test_labels must be int64 of shape (N,), not torch.int64 of shape (2, 1)",
        ),
        ({"train_labels": LABELS[:5]}, "train_labels has 5 entries for 6 images: each image needs one"),
        ({"train_labels": LABELS + 1}, "train_labels holds 3, outside 0 to 2 for 3 classes"),
        ({"test_labels": LABELS[:2] - 1}, "test_labels holds -1, outside 0 to 2 for 3 classes"),
        (
            {"test_images": IMAGES[:2, :1]},
            "train_images of shape (3, 5, 4) and test_images of shape (1, 5, 4) must be alike",
        ),
        ({"mean": (0.1,)}, "mean = (0.1,) must hold one number for each of the 3 channels"),
        ({"std": (1.0,) * 4}, "std = (1.0, 1.0, 1.0, 1.0) must hold one number for each of the 3 channels"),
        ({"std": (1.0, 0.0, 1.0)}, "std = (1.0, 0.0, 1.0) must be above 0"),
        ({"std": (1.0, float("nan"), 1.0)}, "std = (1.0, nan, 1.0) must be above 0"),
    ],
)
def test_parts_that_do_not_fit(changes, message):
    with pytest.raises(UserError) as caught:
        make(**changes)
    assert str(caught.value).startswith(message)


def test_statistics_are_those_of_all_pixels_of_a_channel():
    images = torch.randint(256, (7, 2, 5, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images[:, 1] //= 3
    mean, std = channel_statistics(images)
    pixels = images.double() / 255
    torch.testing.assert_close(torch.tensor(mean).double(), pixels.mean((0, 2, 3)), atol=1e-7, rtol=0)
    expected = pixels.std((0, 2, 3), correction=0)
    torch.testing.assert_close(torch.tensor(std).double(), expected, atol=1e-7, rtol=0)
