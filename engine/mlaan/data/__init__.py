"""From the section `data` to batches on the device."""

from pathlib import Path

import torch

from mlaan.config import DataConfig
from mlaan.data.cifar import CIFAR10, CIFAR100
from mlaan.data.dali import DaliLoader
from mlaan.data.dataset import Augment, Batch, Dataset
from mlaan.data.digits import Digits
from mlaan.data.fashion_mnist import FashionMNIST
from mlaan.data.imagenet import ImageNet
from mlaan.data.loader import Loader
from mlaan.data.memory import MemoryLoader
from mlaan.data.mixing import Mixing
from mlaan.data.source import Described, Facts, ImageSource, Loaders, MemorySource, SubsetSource
from mlaan.data.stl10 import STL10
from mlaan.data.svhn import SVHN
from mlaan.data.synthetic import Synthetic
from mlaan.data.view_loader import ViewLoader


def loaders(config: DataConfig, device: torch.device | str, seed: int, kept: Path | None = None) -> Loaders:
    """Open the data set that `config` names, for batches on `device`; `seed` decides order and augmentation.

    `kept` is a file by `Loaders.keep`: the same images as then.

    Raises UserError where it cannot be read or has fewer images than a batch, TypeError for a `config` that
    is no ImageSource.
    """
    return _source(config).loaders(device, seed, kept)


def facts(config: DataConfig) -> Facts:
    """What `config` alone says of its data set; reads no file. Raises TypeError as `loaders` does."""
    return _source(config).facts()


def _source(config: DataConfig) -> ImageSource:
    if not isinstance(config, ImageSource):
        raise TypeError(f"{type(config).__name__} must derive from mlaan.data.ImageSource too")
    return config


__all__ = [
    "CIFAR10",
    "CIFAR100",
    "STL10",
    "SVHN",
    "Augment",
    "Batch",
    "DaliLoader",
    "Dataset",
    "Described",
    "Digits",
    "Facts",
    "FashionMNIST",
    "ImageNet",
    "ImageSource",
    "Loader",
    "Loaders",
    "MemoryLoader",
    "MemorySource",
    "Mixing",
    "SubsetSource",
    "Synthetic",
    "ViewLoader",
    "facts",
    "loaders",
]
