"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009): 50,000 + 10,000 photographs of 32x32, from the "python version"."""

import pickle
from abc import abstractmethod
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from mlaan.config import DataConfig, setting
from mlaan.data.archive import Archive, ArchiveSource, Damaged
from mlaan.data.augment import CropFlip
from mlaan.data.dataset import Augment, Dataset
from mlaan.data.source import Facts

_SIZE = 32
_TRAIN_COUNT = 50000
_MEAN = (125.3 / 255, 123.0 / 255, 113.9 / 255)
_STD = (63.0 / 255, 62.1 / 255, 66.7 / 255)


@dataclass(frozen=True)
class _Cifar(ArchiveSource):
    """What both share, CIFAR-10's mean and deviation too, as in the published recipes."""

    batch: int = setting(1024, "images in a batch")
    augment: Literal["none", "crop_flip"] = setting(
        "crop_flip",
        "crop_flip: move images by up to four pixels, mirroring them at their edges, then mirror half of them",
    )
    classes: ClassVar[int]
    key: ClassVar[str]
    """The key of the labels in the files."""

    @abstractmethod
    def official(self) -> Any:
        """Torchvision's class, which knows the names and the origin of the files."""

    def facts(self) -> Facts:
        return Facts(self.classes, (3, _SIZE, _SIZE), _MEAN, _STD, self.train_images or _TRAIN_COUNT)

    def archives(self) -> tuple[Archive, ...]:
        official = self.official()
        return (Archive(official.url, official.filename, official.tgz_md5, (*self._train(), *self._test())),)

    def read_files(self, folder: Path) -> Dataset:
        train, test = (self._part(folder, names) for names in (self._train(), self._test()))
        return Dataset(*train, *test, self.classes, _MEAN, _STD)

    def augmentation(self) -> Augment | None:
        """A crop out of four mirrored pixels around, and a mirror for half the images; see `augment`."""
        return CropFlip(pad=4, edge="reflect", flip=True) if self.augment == "crop_flip" else None

    def _part(self, folder: Path, names: list[str]) -> tuple[Tensor, Tensor]:
        images, labels = zip(*(read_batch(folder / name, self.key, self.classes) for name in names), strict=True)
        return torch.cat(images), torch.cat(labels)

    def _train(self) -> list[str]:
        return [f"{self.official().base_folder}/{name}" for name, _ in self.official().train_list]

    def _test(self) -> list[str]:
        return [f"{self.official().base_folder}/{name}" for name, _ in self.official().test_list]


@dataclass(frozen=True)
class CIFAR10(_Cifar, DataConfig, name="cifar10"):
    """CIFAR-10, 32x32 colour photographs of 10 classes, 50,000 to train on and 10,000 to test."""

    root: str = setting("data/cifar10", "folder that holds cifar-10-batches-py")
    classes: ClassVar[int] = 10
    key: ClassVar[str] = "labels"

    def official(self) -> Any:
        from torchvision.datasets import CIFAR10

        return CIFAR10


@dataclass(frozen=True)
class CIFAR100(_Cifar, DataConfig, name="cifar100"):
    """CIFAR-100, 32x32 colour photographs of 100 classes, 50,000 to train on and 10,000 to test."""

    root: str = setting("data/cifar100", "folder that holds cifar-100-python")
    classes: ClassVar[int] = 100
    key: ClassVar[str] = "fine_labels"

    def official(self) -> Any:
        from torchvision.datasets import CIFAR100

        return CIFAR100


def read_batch(path: Path, key: str, classes: int) -> tuple[Tensor, Tensor]:
    """Images (N, 3, 32, 32) uint8 and labels (N,) int64 of one pickled batch.

    The entries' names may be bytes, as where Python 3 read a file of Python 2 and wrote it again. Raises Damaged.
    """
    content = BytesIO(path.read_bytes())
    try:
        pickled = _ArraysOnly(content, encoding="latin1").load()
        entries = {name.decode() if isinstance(name, bytes) else name: value for name, value in pickled.items()}
        images, labels = entries["data"], np.asarray(entries[key], dtype=np.int64)
    except Exception as error:  # damaged bytes make the unpickler raise nearly anything
        raise Damaged(path, f"{type(error).__name__}: {error}") from None
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.shape[1:] != (3 * _SIZE**2,):
        raise Damaged(path, f"'data' is no uint8 array of N rows of {3 * _SIZE**2}")
    if labels.shape != (len(images),):
        raise Damaged(path, f"{len(images)} images and labels of shape {labels.shape}")
    if len(labels) and not 0 <= labels.min() <= labels.max() < classes:
        raise Damaged(path, f"labels from {labels.min()} to {labels.max()}, expected 0 to {classes - 1}")
    return torch.from_numpy(images.reshape(-1, 3, _SIZE, _SIZE)), torch.from_numpy(labels)


class _ArraysOnly(pickle.Unpickler):
    """Plain pickle runs whatever code a file asks for; these files need NumPy's arrays alone."""

    _ARRAY = np.empty(0).__reduce__()[0]
    _ALLOWED: ClassVar[dict[tuple[str, str], Any]] = {
        ("numpy.core.multiarray", "_reconstruct"): _ARRAY,
        ("numpy._core.multiarray", "_reconstruct"): _ARRAY,
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no CIFAR file needs")
        return self._ALLOWED[module, name]
