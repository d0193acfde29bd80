"""What a member of DataConfig offers: facts without reading a file, and the loaders."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch

from mlaan.config import setting
from mlaan.data.dataset import Augment, Dataset
from mlaan.data.loader import Loader
from mlaan.data.memory import MemoryLoader
from mlaan.errors import UserError


class Facts(NamedTuple):
    """What is known of a data set before its files are read."""

    classes: int
    image_shape: tuple[int, int, int]
    """(C, H, W) of a batch's images."""
    mean: tuple[float, ...] | None
    """Mean of each channel, on the scale where 255 is 1; None where it is measured on the training images."""
    std: tuple[float, ...] | None
    """Standard deviation of each channel, likewise."""
    train_count: int | None
    """Training images of the official files, or of the chosen part of them; None where only the files tell."""


class Described(Protocol):
    """What training needs to know of a data set that is loaded; the names mean what they mean in `Facts`."""

    @property
    def classes(self) -> int: ...
    @property
    def image_shape(self) -> tuple[int, int, int]: ...
    @property
    def mean(self) -> tuple[float, ...]: ...
    @property
    def std(self) -> tuple[float, ...]: ...


class _Loaders(NamedTuple):
    dataset: Described
    train: Loader
    """Shuffled, augmented, full batches only."""
    test: Loader
    """In order, every image, nothing random."""


class Loaders(_Loaders):
    """A data set and the two ways through it.

    Attributes:
        notes: lines for the person who trains, such as how many files are left out.
        keep: writes which images these are to a file, for `ImageSource.loaders` later; None where that never changes.
    """

    notes: tuple[str, ...] = ()
    keep: Callable[[Path], None] | None = None


class ImageSource(ABC):
    """What `mlaan.data.loaders` needs of a member of DataConfig: a frozen dataclass with `batch` as a field."""

    batch: int

    def __post_init__(self) -> None:
        require_positive(batch=self.batch)

    @abstractmethod
    def facts(self) -> Facts:
        """What the settings alone say; reads no file."""

    def smaller_sizes(self) -> list[tuple[int, int]]:
        """(H, W) that training images have before they have grown to those of `facts`."""
        return []

    @abstractmethod
    def loaders(self, device: torch.device | str, seed: int, kept: Path | None = None) -> Loaders:
        """Batches on `device`; `seed` decides order and augmentation.

        `kept` is a file by `Loaders.keep`: of the same images as then.

        Raises UserError where files are missing or broken, or there are fewer images than a batch.
        """


class MemorySource(ImageSource):
    """A data set that is held whole in the device's memory."""

    @abstractmethod
    def load(self) -> Dataset:
        """Both parts, the same at every call; raises UserError where the files are missing or broken."""

    @abstractmethod
    def augmentation(self) -> Augment | None:
        """What is done to every training batch; None for nothing."""

    def loaders(self, device: torch.device | str, seed: int, kept: Path | None = None) -> Loaders:
        data = self.load()
        loader = partial(MemoryLoader, batch=self.batch, device=device, mean=data.mean, std=data.std, seed=seed)
        train = loader(data.train_images, data.train_labels, augment=self.augmentation(), shuffle=True, drop_last=True)
        test = loader(data.test_images, data.test_labels, augment=None, shuffle=False, drop_last=False)
        return Loaders(data, train, test)


@dataclass(frozen=True)
class SubsetSource(MemorySource):
    """A data set in memory that a fixed part of the training images can be taken of."""

    train_images: int = setting(0, "train on this many images, the first of a fixed shuffle; 0: on all")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.train_images < 0:
            raise UserError(f"data.train_images = {self.train_images} must not be negative; 0 means all")

    @abstractmethod
    def read(self) -> Dataset:
        """As `load`, with all training images."""

    def load(self) -> Dataset:
        """Both parts; mean and deviation are those of all training images, also when a part of them is used."""
        data = self.read()
        if not self.train_images:
            return data
        count = len(data.train_images)
        if self.train_images > count:
            raise UserError(
                f"data.train_images = {self.train_images} is more than there are, {count}: "
                "set data.train_images = 0 for all"
            )
        # NumPy's compatibility policy freezes RandomState's stream: the subset never changes.
        chosen = torch.from_numpy(np.random.RandomState(0).permutation(count)[: self.train_images])
        return replace(data, train_images=data.train_images[chosen], train_labels=data.train_labels[chosen])


def require_positive(**fields: int) -> None:
    """Raises UserError for the first field of `data` that is below 1."""
    for name, value in fields.items():
        if value < 1:
            raise UserError(f"data.{name} = {value} must be at least 1")
