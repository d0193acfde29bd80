"""Images that are made up on the fly, for tests and for timing without a disk."""

import zlib

import torch
from torch import Tensor

TRAIN_PER_CLASS, TEST_PER_CLASS = 1281, 50
"""As many as ImageNet has, to the next whole number."""
_CELLS = 4


class MadeUpImages:
    """A coarse pattern of the class under a piece of noise; easy to learn, and cheap.

    Args:
        classes: in turn 0, 1, …, classes - 1, 0, …
        side: height and width in pixels.
        part: another part has other noise.
    """

    def __init__(self, count: int, classes: int, side: int, part: int) -> None:
        self.labels = torch.arange(count) % classes
        self._side, self._part = side, part
        generator = torch.Generator().manual_seed(0)
        self._patterns = torch.randint(128, (classes, 3, _CELLS, _CELLS), dtype=torch.uint8, generator=generator)
        generator.manual_seed(1 + part)
        self._noise = torch.randint(128, (3, 2 * side, 2 * side), dtype=torch.uint8, generator=generator)

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        return f"made-up image {index}"

    def read(self, index: int) -> Tensor:
        """(3, side, side) uint8."""
        top, left = index * 7919 % self._side, index // self._side * 104729 % self._side
        cell = torch.arange(self._side) * _CELLS // self._side
        pattern = self._patterns[int(self.labels[index])][:, cell][:, :, cell]
        return pattern + self._noise[:, top : top + self._side, left : left + self._side]

    def fingerprint(self) -> int:
        return zlib.crc32(repr((len(self), len(self._patterns), self._side, self._part)).encode())
