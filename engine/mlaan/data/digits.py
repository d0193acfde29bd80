"""Scikit-learn's handwritten digits: 1,797 real images of 8x8 pixels that come inside its package."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from mlaan.config import DataConfig, setting
from mlaan.data.augment import CropFlip
from mlaan.data.dataset import Augment, Dataset, channel_statistics
from mlaan.data.source import Facts, SubsetSource
from mlaan.errors import UserError

_CLASSES = 10
_TRAIN_COUNT = 1438
_TEST_SHARE = 0.2
_GREY_LEVELS = 16


@dataclass(frozen=True)
class Digits(SubsetSource, DataConfig, name="digits"):
    """Scikit-learn's handwritten digits, 8x8 grey, 1,438 to train on and 359 to test; needs no download."""

    batch: int = setting(64, "images in a batch")
    augment: Literal["none", "shift"] = setting(
        "shift", "shift: move images by up to one pixel, filling up with black; digits are never mirrored"
    )

    def facts(self) -> Facts:
        return Facts(_CLASSES, (1, 8, 8), None, None, self.train_images or _TRAIN_COUNT)

    def read(self) -> Dataset:
        """Grey levels 0 to 16 spread over 0 to 255; a fixed fifth of every class is for testing.

        Raises UserError where scikit-learn is not installed.
        """
        try:
            from sklearn.datasets import load_digits
        except ImportError:
            raise UserError(
                "data.name = 'digits' needs the package 'scikit-learn': pip install scikit-learn, "
                "or choose another data.name"
            ) from None
        pixels, labels = load_digits(return_X_y=True)
        levels = np.rint(pixels.reshape(-1, 1, 8, 8) * (255 / _GREY_LEVELS))
        images = torch.from_numpy(levels.astype(np.uint8))
        train, test = (torch.from_numpy(chosen) for chosen in stratified_split(labels, _TEST_SHARE))
        targets = torch.from_numpy(labels.astype(np.int64))
        mean, std = channel_statistics(images[train])
        return Dataset(images[train], targets[train], images[test], targets[test], _CLASSES, mean, std)

    def augmentation(self) -> Augment | None:
        """One pixel of zero padding and a random crop, or nothing."""
        return CropFlip(pad=1, edge="zero", flip=False) if self.augment == "shift" else None


def stratified_split(labels: np.ndarray, test_share: float) -> tuple[np.ndarray, np.ndarray]:
    """Indices (int64, ascending) to train on and to test on: of each class the same rounded share.

    NumPy's compatibility policy freezes RandomState's stream, so the split is the same with every version.
    """
    random = np.random.RandomState(0)
    is_test = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = random.permutation(np.flatnonzero(labels == label))
        is_test[members[: round(test_share * len(members))]] = True
    return np.flatnonzero(~is_test), np.flatnonzero(is_test)
