"""Batches from a data set held whole on the device."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from mlaan.data.augment import normalise
from mlaan.data.dataset import Augment, Batch
from mlaan.data.loader import Loader, mixed_seed


class MemoryLoader(Loader):
    """Endless epochs over images kept as uint8 on the device and augmented there.

    The augmentation of a batch depends on (seed, epoch, number of the batch) alone and is drawn on the CPU,
    so every device sees the same batches.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        *,
        batch: int,
        device: torch.device | str,
        mean: Sequence[float],
        std: Sequence[float],
        augment: Augment | None,
        shuffle: bool,
        drop_last: bool,
        seed: int,
    ) -> None:
        """`images` (N, C, H, W) uint8 and `labels` (N,) int64 on any device; the rest as in `Loader`."""
        super().__init__(len(images), batch=batch, device=device, shuffle=shuffle, drop_last=drop_last, seed=seed)
        self.images = images.to(self.device)
        self.labels = labels.to(self.device)
        self.augment = augment
        self._mean = torch.tensor(mean, dtype=torch.float32, device=self.device)
        self._std = torch.tensor(std, dtype=torch.float32, device=self.device)

    def batches(self, epoch: int, first: int) -> Iterator[Batch]:
        order = self.order(epoch).to(self.device)
        for index in range(first, len(self)):
            chosen = order[index * self.batch : (index + 1) * self.batch]
            images = self.images.index_select(0, chosen)
            if self.augment is not None:
                generator = torch.Generator().manual_seed(mixed_seed(self.seed, epoch, 1 + index))
                images = self.augment(images, generator)
            yield Batch(normalise(images, self._mean, self._std), self.labels.index_select(0, chosen))
