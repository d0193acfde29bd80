"""SVHN, cropped digits (Netzer et al. 2011): 73,257 + 26,032 house-number digits of 32x32."""

from dataclasses import dataclass
from io import BytesIO
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
from mlaan.errors import UserError

_SIZE = 32
_CLASSES = 10
_TRAIN_COUNT = 73257
_HALF = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class SVHN(ArchiveSource, DataConfig, name="svhn"):
    """SVHN's cropped house-number digits, 32x32 colour, 73,257 to train on and 26,032 to test."""

    root: str = setting("data/svhn", "folder that holds train_32x32.mat and test_32x32.mat")
    batch: int = setting(1024, "images in a batch")
    augment: Literal["none", "crop"] = setting(
        "crop", "crop: move images by up to two pixels, filling up with black; digits are never mirrored"
    )

    def facts(self) -> Facts:
        return Facts(_CLASSES, (3, _SIZE, _SIZE), _HALF, _HALF, self.train_images or _TRAIN_COUNT)

    def archives(self) -> tuple[Archive, ...]:
        from torchvision.datasets import SVHN as Official

        parts = (Official.split_list[part] for part in ("train", "test"))
        return tuple(Archive(url, name, md5, (name,)) for url, name, md5 in parts)

    def read_files(self, folder: Path) -> Dataset:
        train, test = (_part(folder / f"{part}_32x32.mat") for part in ("train", "test"))
        return Dataset(*train, *test, _CLASSES, _HALF, _HALF)

    def augmentation(self) -> Augment | None:
        """A crop out of two pixels of zero padding, or nothing."""
        return CropFlip(pad=2, edge="zero", flip=False) if self.augment == "crop" else None


def _part(path: Path) -> tuple[Tensor, Tensor]:
    """Images (N, 3, 32, 32) uint8 and labels (N,) int64.

    In the MATLAB file: "X" (32, 32, 3, N) and "y" (N, 1), where the digit 0 has the label 10.
    """
    try:
        from scipy.io import loadmat
    except ImportError:
        raise UserError("data.name = 'svhn' needs the package 'scipy': pip install scipy") from None
    content = BytesIO(path.read_bytes())
    try:
        arrays = loadmat(content, variable_names=["X", "y"])
        images, labels = arrays["X"], arrays["y"].reshape(-1).astype(np.int64)
    except Exception as error:  # damaged bytes make the reader raise nearly anything
        raise Damaged(path, f"{type(error).__name__}: {error}") from None
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[:3] != (_SIZE, _SIZE, 3):
        raise Damaged(path, f"'X' is {images.dtype} of shape {images.shape}, expected uint8 (32, 32, 3, N)")
    if len(labels) != images.shape[3]:
        raise Damaged(path, f"{len(labels)} labels for {images.shape[3]} images")
    if len(labels) and not 1 <= labels.min() <= labels.max() <= _CLASSES:
        raise Damaged(path, f"labels from {labels.min()} to {labels.max()}, expected 1 to {_CLASSES}")
    return torch.from_numpy(np.ascontiguousarray(images.transpose(3, 2, 0, 1))), torch.from_numpy(labels % 10)
