"""Made-up images of any size, for tests and for timing without files."""

from dataclasses import dataclass

import torch
from torch import Tensor

from mlaan.config import DataConfig, setting
from mlaan.data.dataset import Augment, Dataset, channel_statistics
from mlaan.data.source import Facts, MemorySource, require_positive
from mlaan.errors import UserError

_CELLS = 4
_HALF = 128


@dataclass(frozen=True)
class Synthetic(MemorySource, DataConfig, name="synthetic"):
    """Made-up images: a coarse random pattern for each class under as much noise; easy to learn."""

    batch: int = setting(64, "images in a batch")
    images: int = setting(1024, "images to train on")
    test_images: int = setting(256, "images to test on")
    classes: int = setting(10, "number of classes, all equally frequent")
    channels: int = setting(3, "channels of an image")
    size: int = setting(32, "height and width of an image in pixels")

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(images=self.images, test_images=self.test_images, channels=self.channels, size=self.size)
        if self.classes < 2:
            raise UserError(f"data.classes = {self.classes} must be at least 2")

    def facts(self) -> Facts:
        return Facts(self.classes, (self.channels, self.size, self.size), None, None, self.images)

    def load(self) -> Dataset:
        """The same images at every call, whatever train.seed."""
        generator = torch.Generator().manual_seed(0)
        shape = (self.classes, self.channels, _CELLS, _CELLS)
        cells = torch.randint(_HALF, shape, dtype=torch.uint8, generator=generator)
        cell_of = torch.arange(self.size) * _CELLS // self.size
        patterns = cells[:, :, cell_of][:, :, :, cell_of]
        train_images, train_labels = _part(self.images, patterns, generator)
        test_images, test_labels = _part(self.test_images, patterns, generator)
        mean, std = channel_statistics(train_images)
        return Dataset(train_images, train_labels, test_images, test_labels, self.classes, mean, std)

    def augmentation(self) -> Augment | None:
        """None: what is timed with these images should be the training."""
        return None


def _part(count: int, patterns: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    labels = torch.randperm(count, generator=generator) % len(patterns)
    noise = torch.randint(_HALF, (count, *patterns.shape[1:]), dtype=torch.uint8, generator=generator)
    return noise.add_(patterns[labels]), labels
