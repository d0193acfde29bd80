"""From the section `data` to batches on the device."""

from functools import partial
from typing import NamedTuple

import torch

from mlaan.config import DataConfig
from mlaan.data.dataset import Augment, Batch, Dataset, ImageSource
from mlaan.data.digits import Digits
from mlaan.data.fashion_mnist import FashionMNIST
from mlaan.data.memory import MemoryLoader
from mlaan.data.synthetic import Synthetic


class Loaders(NamedTuple):
    """A data set and the two ways through it."""

    dataset: Dataset
    train: MemoryLoader
    """Shuffled, augmented, full batches only."""
    test: MemoryLoader
    """In order, unchanged, every image."""


def loaders(config: DataConfig, device: torch.device | str, seed: int) -> Loaders:
    """Read the data set that `config` names and put it on `device`; `seed` decides order and augmentation.

    Raises UserError where it cannot be read or has fewer images than a batch, TypeError for a `config` that
    is no ImageSource.
    """
    if not isinstance(config, ImageSource):
        raise TypeError(f"{type(config).__name__} must derive from mlaan.data.ImageSource too")
    data = config.load()
    loader = partial(MemoryLoader, batch=config.batch, device=device, mean=data.mean, std=data.std, seed=seed)
    train = loader(data.train_images, data.train_labels, augment=config.augmentation(), shuffle=True, drop_last=True)
    test = loader(data.test_images, data.test_labels, augment=None, shuffle=False, drop_last=False)
    return Loaders(data, train, test)


__all__ = [
    "Augment",
    "Batch",
    "Dataset",
    "Digits",
    "FashionMNIST",
    "ImageSource",
    "Loaders",
    "MemoryLoader",
    "Synthetic",
    "loaders",
]
