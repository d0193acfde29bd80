"""Batches from a data set held whole on the device, with a place that can be saved and found again."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from mlaan.data.augment import normalise
from mlaan.data.dataset import Augment, Batch
from mlaan.errors import UserError


class MemoryLoader:
    """Endless epochs over images kept as uint8 on the device, one epoch for each `for` loop.

    The order of an epoch depends on (seed, epoch) alone and the augmentation of a batch on (seed, epoch,
    index) alone, both drawn on the CPU. So the place is all the state there is, a run resumed in the middle
    of an epoch goes on exactly, and every device sees the same batches. One loop at a time.
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
        """`images` (N, C, H, W) uint8 and `labels` (N,) int64 on any device; what does not fill a batch at
        the end of an epoch is left out with `drop_last`, else it is a smaller last batch.

        Raises UserError for a batch or a seed that does not do.
        """
        if batch < 1:
            raise UserError(f"data.batch = {batch} must be at least 1")
        if seed < 0:
            raise UserError(f"train.seed = {seed} must not be negative")
        if drop_last and len(images) < batch:
            raise UserError(
                f"data.batch = {batch} is more than the {len(images)} training images: "
                f"set data.batch to {len(images)} or less"
            )
        self.device = torch.device(device)
        self.images = images.to(self.device)
        self.labels = labels.to(self.device)
        self.batch = batch
        self.augment = augment
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.seed = seed
        self.epoch = 0
        """The epoch, from 0, that the next `for` loop goes through or finishes."""
        self.position = 0
        """Batches of this epoch already given."""
        self._mean = torch.tensor(mean, dtype=torch.float32, device=self.device)
        self._std = torch.tensor(std, dtype=torch.float32, device=self.device)

    def __len__(self) -> int:
        """Batches in a whole epoch."""
        full, rest = divmod(len(self.images), self.batch)
        return full if self.drop_last or not rest else full + 1

    @property
    def images_per_epoch(self) -> int:
        """Images that a whole epoch gives."""
        return len(self) * self.batch if self.drop_last else len(self.images)

    def __iter__(self) -> Iterator[Batch]:
        """The batches left in this epoch; moves on to the next epoch when asked for more than the last one.

        A state saved after the last batch but before that gives an empty loop on resume, then the next epoch.
        """
        epoch = self.epoch
        order = self._order(epoch)
        while self.epoch == epoch and self.position < len(self):
            index = self.position
            self.position += 1
            yield self._batch(order, epoch, index)
        if self.epoch == epoch:
            self.epoch += 1
            self.position = 0

    def state_dict(self) -> dict[str, int]:
        """The place after the batches given so far, and what must not change for it to be the same place."""
        return {**self._identity(), "epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go to a saved place; raises UserError where it is not a place in this loader's epochs."""
        expected = self.state_dict().keys()
        if state.keys() != expected:
            raise UserError(f"the loader's state holds {sorted(state)}, expected {sorted(expected)}")
        for key, mine in self._identity().items():
            if state[key] != mine:
                raise UserError(
                    f"the loader's state has {key} = {state[key]}, this run has {mine}: "
                    "resume with the data settings and the seed of the saved run"
                )
        if state["epoch"] < 0 or not 0 <= state["position"] <= len(self):
            raise UserError(
                f"the loader's state has epoch = {state['epoch']} and position = {state['position']}, "
                f"outside an epoch's {len(self)} batches"
            )
        self.epoch = state["epoch"]
        self.position = state["position"]

    def _identity(self) -> dict[str, int]:
        return {"seed": self.seed, "images": len(self.images), "batch": self.batch}

    def _order(self, epoch: int) -> Tensor:
        count = len(self.images)
        if not self.shuffle:
            return torch.arange(count, device=self.device)
        return torch.randperm(count, generator=self._generator(epoch, 0)).to(self.device)

    def _batch(self, order: Tensor, epoch: int, index: int) -> Batch:
        chosen = order[index * self.batch : (index + 1) * self.batch]
        images = self.images.index_select(0, chosen)
        if self.augment is not None:
            images = self.augment(images, self._generator(epoch, 1 + index))
        return Batch(normalise(images, self._mean, self._std), self.labels.index_select(0, chosen))

    def _generator(self, epoch: int, stream: int) -> torch.Generator:
        # Mixing the numbers, not adding them, keeps the batches of neighbouring seeds and epochs apart.
        mixed = np.random.SeedSequence([self.seed, epoch, stream]).generate_state(1, np.uint64)
        return torch.Generator().manual_seed(int(mixed[0]))
