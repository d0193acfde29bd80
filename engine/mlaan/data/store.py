"""What every kind of image storage offers: labelled images, read one by one in any order."""

import zlib
from typing import Protocol

from torch import Tensor


class Unreadable(Exception):
    """An image that cannot be had; the run goes on without it.

    Attributes:
        name: what a person knows the image by, such as its path.
        reason: one line.
    """

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)
        self.name, self.reason = name, " ".join(reason.split())

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


class Images(Protocol):
    """Labelled images. Several processes read them at once, so that an object of this kind survives pickling."""

    @property
    def labels(self) -> Tensor:
        """(N,) int64, on the CPU."""
        ...

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """What a person knows an image by."""
        ...

    def read(self, index: int) -> Tensor:
        """An image, (3, H, W) uint8, of any size; raises Unreadable."""
        ...

    def fingerprint(self) -> int:
        """32 bits that change with the images, their order and their labels, as far as that shows without reading."""
        ...


class ChosenImages:
    """Some of the images of a storage, in an order of their own."""

    def __init__(self, images: Images, numbers: Tensor) -> None:
        """`numbers` (N,) int64: which ones."""
        self._images, self._numbers = images, numbers
        self._labels = images.labels[numbers]

    @property
    def labels(self) -> Tensor:
        return self._labels

    def __len__(self) -> int:
        return len(self._numbers)

    def name(self, index: int) -> str:
        return self._images.name(int(self._numbers[index]))

    def read(self, index: int) -> Tensor:
        """(3, H, W) uint8; raises Unreadable."""
        return self._images.read(int(self._numbers[index]))

    def fingerprint(self) -> int:
        return zlib.crc32(self._numbers.numpy().tobytes(), self._images.fingerprint())
