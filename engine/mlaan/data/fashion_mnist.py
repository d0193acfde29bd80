"""Fashion-MNIST (Xiao, Rasul, Vollgraf 2017): 60,000 + 10,000 real images of clothing, 28x28, 10 classes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mlaan.config import DataConfig, setting
from mlaan.data.augment import CropFlip
from mlaan.data.dataset import Augment, Dataset, channel_statistics
from mlaan.data.idx import read_idx
from mlaan.data.source import Facts, SubsetSource
from mlaan.errors import UserError

_SIZE = 28
_CLASSES = 10
_TRAIN_COUNT = 60000


@dataclass(frozen=True)
class FashionMNIST(SubsetSource, DataConfig, name="fashion_mnist"):
    """Fashion-MNIST, 28x28 grey, 60,000 to train on and 10,000 to test, from its authors' four IDX files."""

    root: str = setting("/usr/share/datasets/fashion-mnist", "folder with the four IDX files, plain or as .gz")
    batch: int = setting(128, "images in a batch")
    augment: Literal["none", "flip", "crop_flip"] = setting(
        "crop_flip",
        "flip: mirror half the images; crop_flip: first move them by up to two pixels, filling up with black",
    )

    def facts(self) -> Facts:
        return Facts(_CLASSES, (1, _SIZE, _SIZE), None, None, self.train_images or _TRAIN_COUNT)

    def read(self) -> Dataset:
        """Both parts; raises UserError where a file is missing, damaged, or not Fashion-MNIST's size."""
        root = Path(self.root).expanduser()
        fix = (
            "get the files with `apt-get install dataset-fashion-mnist` (Debian, Ubuntu) or from "
            f"github.com/zalandoresearch/fashion-mnist, and set data.root to their folder, now {self.root!r}"
        )
        if not root.is_dir():
            raise UserError(f"data.root = {self.root!r} is not a folder: {fix}")
        train_images, train_labels = _part(root, "train", fix)
        test_images, test_labels = _part(root, "t10k", fix)
        mean, std = channel_statistics(train_images)
        return Dataset(train_images, train_labels, test_images, test_labels, _CLASSES, mean, std)

    def augmentation(self) -> Augment | None:
        """A crop out of two pixels of zero padding and a mirror for half the images; see `augment`."""
        if self.augment == "none":
            return None
        return CropFlip(pad=2 if self.augment == "crop_flip" else 0, edge="zero", flip=True)


def _part(root: Path, part: str, fix: str) -> tuple[Tensor, Tensor]:
    """Images (N, 1, 28, 28) uint8 and labels (N,) int64 of "train" or "t10k"."""
    images_path, images = read_idx(root, f"{part}-images-idx3-ubyte", 3, fix)
    labels_path, labels = read_idx(root, f"{part}-labels-idx1-ubyte", 1, fix)
    count, height, width = images.shape
    if count == 0:
        raise UserError(f"{images_path} holds no images; {fix}")
    if (height, width) != (_SIZE, _SIZE):
        raise UserError(f"{images_path} holds images of {height}x{width} pixels, expected {_SIZE}x{_SIZE}; {fix}")
    if len(labels) != count:
        raise UserError(f"{labels_path} holds {len(labels)} labels, expected {count} as in {images_path.name}; {fix}")
    if labels.max() >= _CLASSES:
        raise UserError(f"{labels_path} holds the label {labels.max()}, expected 0 to {_CLASSES - 1}; {fix}")
    return torch.from_numpy(images)[:, None], torch.from_numpy(labels.astype(np.int64))
