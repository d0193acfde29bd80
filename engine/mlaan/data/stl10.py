"""STL-10 (Coates, Ng, Lee 2011): 5,000 labelled + 8,000 test photographs of 96x96 in 10 classes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mlaan.config import DataConfig, setting
from mlaan.data.archive import Archive, ArchiveSource, Damaged
from mlaan.data.augment import CropFlip
from mlaan.data.dataset import Augment, Dataset
from mlaan.data.source import Facts

_SIZE = 96
_CLASSES = 10
_TRAIN_COUNT = 5000
_HALF = (0.5, 0.5, 0.5)
_FOLDER = "stl10_binary"


@dataclass(frozen=True)
class STL10(ArchiveSource, DataConfig, name="stl10"):
    """STL-10, 96x96 colour photographs of 10 classes, the 5,000 labelled ones to train on and 8,000 to test."""

    root: str = setting("data/stl10", "folder that holds stl10_binary")
    batch: int = setting(128, "images in a batch")
    augment: Literal["none", "crop_flip"] = setting(
        "crop_flip", "crop_flip: move images by up to four pixels, filling up with black, then mirror half of them"
    )

    def facts(self) -> Facts:
        return Facts(_CLASSES, (3, _SIZE, _SIZE), _HALF, _HALF, self.train_images or _TRAIN_COUNT)

    def archives(self) -> tuple[Archive, ...]:
        from torchvision.datasets import STL10 as Official

        files = tuple(f"{_FOLDER}/{part}_{kind}.bin" for part in ("train", "test") for kind in "Xy")
        return (Archive(Official.url, Official.filename, Official.tgz_md5, files),)

    def read_files(self, folder: Path) -> Dataset:
        train, test = (_part(folder / _FOLDER, part) for part in ("train", "test"))
        return Dataset(*train, *test, _CLASSES, _HALF, _HALF)

    def augmentation(self) -> Augment | None:
        """A crop out of four pixels of zero padding, and a mirror for half the images; see `augment`."""
        return CropFlip(pad=4, edge="zero", flip=True) if self.augment == "crop_flip" else None


def _part(folder: Path, part: str) -> tuple[Tensor, Tensor]:
    """Images (N, 3, 96, 96) uint8 and labels (N,) int64 of "train" or "test".

    On the disk: bytes without a header, each channel column by column; labels from 1.
    """
    path = folder / f"{part}_X.bin"
    pixels = np.fromfile(path, np.uint8)
    count, rest = divmod(pixels.size, 3 * _SIZE**2)
    if rest or not count:
        raise Damaged(path, f"{pixels.size} bytes are no whole number of images of {3 * _SIZE**2}")
    images = np.ascontiguousarray(pixels.reshape(count, 3, _SIZE, _SIZE).swapaxes(2, 3))
    path = folder / f"{part}_y.bin"
    labels = np.fromfile(path, np.uint8)
    if len(labels) != count:
        raise Damaged(path, f"{len(labels)} labels for {count} images")
    if not 1 <= labels.min() <= labels.max() <= _CLASSES:
        raise Damaged(path, f"labels from {labels.min()} to {labels.max()}, expected 1 to {_CLASSES}")
    return torch.from_numpy(images), torch.from_numpy(labels.astype(np.int64) - 1)
