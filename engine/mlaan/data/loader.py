"""Epochs of batches with a place that can be saved and found again."""

import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from mlaan.data.dataset import Batch
from mlaan.data.store import Unreadable
from mlaan.errors import UserError


@dataclass
class LoaderStats:
    """What a loader has done in this process.

    Attributes:
        waited: seconds that whoever asked for a batch had to wait for it.
        images: how many were given.
        left_out: {name: reason} of the images that could not be read on the way.
    """

    waited: float = 0.0
    images: int = 0
    left_out: dict[str, str] = field(default_factory=dict)


def _warn(line: str) -> None:
    warnings.warn(line, RuntimeWarning, stacklevel=2)


class Loader(ABC):
    """Endless epochs over a data set, one epoch for each `for` loop. One loop at a time.

    The order of an epoch depends on (seed, epoch) alone, and a subclass draws nothing random but from (seed,
    epoch, something of the batch or the image). So the place is all the state there is, and a run resumed in
    the middle of an epoch goes on exactly. An image that cannot be read is left out of its batch, which then is
    smaller.

    Attributes:
        stats: see `LoaderStats`.
        say: is called with a line for a person, such as the name of a file that is left out; by default a warning.
    """

    def __init__(
        self, images: int, *, batch: int, device: torch.device | str, shuffle: bool, drop_last: bool, seed: int
    ) -> None:
        """`images` is their number; what does not fill a batch at the end of an epoch is left out with
        `drop_last`, else it is a smaller last batch.

        Raises UserError for a batch or a seed that does not do.
        """
        if batch < 1:
            raise UserError(f"data.batch = {batch} must be at least 1")
        if seed < 0:
            raise UserError(f"train.seed = {seed} must not be negative")
        if drop_last and images < batch:
            raise UserError(
                f"data.batch = {batch} is more than the {images} training images: set data.batch to {images} or less"
            )
        self.device = torch.device(device)
        self.batch = batch
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.seed = seed
        self.epoch = 0
        """The epoch, from 0, that the next `for` loop goes through or finishes."""
        self.position = 0
        """Batches of this epoch already given."""
        self.change: Callable[[Batch, int, int], Batch] | None = None
        """Makes another batch of each, given its epoch and its number in it; changes no place."""
        self.stats = LoaderStats()
        self.say: Callable[[str], None] = _warn
        self._count = images

    @abstractmethod
    def batches(self, epoch: int, first: int) -> Iterator[Batch | None]:
        """The batches of an epoch from number `first` on; None for one that is left out. Changes no place."""

    def __len__(self) -> int:
        """Batches in a whole epoch."""
        full, rest = divmod(self._count, self.batch)
        return full if self.drop_last or not rest else full + 1

    @property
    def images_per_epoch(self) -> int:
        """Images that a whole epoch gives."""
        return len(self) * self.batch if self.drop_last else self._count

    def __iter__(self) -> Iterator[Batch]:
        """The batches left in this epoch; moves on to the next epoch when asked for more than the last one.

        A state saved after the last batch but before that gives an empty loop on resume, then the next epoch.
        """
        epoch = self.epoch
        batches, expected = iter(()), -1
        while self.epoch == epoch and self.position < len(self):
            index = self.position
            if index != expected:
                batches = self.batches(epoch, index)
            start = time.perf_counter()
            batch = next(batches)
            self.stats.waited += time.perf_counter() - start
            self.position = expected = index + 1
            if batch is not None:
                self.stats.images += len(batch.labels)
                yield batch if self.change is None else self.change(batch, epoch, index)
        if self.epoch == epoch:
            self.epoch += 1
            self.position = 0

    def leave_out(self, image: Unreadable) -> None:
        """Counts an image that cannot be read, and says so, once."""
        if image.name not in self.stats.left_out:
            self.stats.left_out[image.name] = image.reason
            self.say(f"left out, as it cannot be read: {image}")

    def state_dict(self) -> dict[str, int]:
        """The place after the batches given so far, and what must not change for it to be the same place."""
        return {**self.identity(), "epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go to a saved place; raises UserError where it is not a place in this loader's epochs."""
        expected = self.state_dict().keys()
        if state.keys() != expected:
            raise UserError(f"the loader's state holds {sorted(state)}, expected {sorted(expected)}")
        for key, mine in self.identity().items():
            if state[key] != mine:
                if key == "files" or (key == "images" and "files" in state):
                    raise UserError(
                        "data.root and data.backend give other images than those that the saved run "
                        "began with: take its own"
                    )
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

    def identity(self) -> dict[str, int]:
        """What two loaders must agree in for a place of one to be a place of the other."""
        return {"seed": self.seed, "images": self._count, "batch": self.batch}

    def order(self, epoch: int) -> Tensor:
        """Numbers (N,) int64 of all images, on the CPU, in the order of that epoch."""
        if not self.shuffle:
            return torch.arange(self._count)
        generator = torch.Generator().manual_seed(mixed_seed(self.seed, epoch, 0))
        return torch.randperm(self._count, generator=generator)


def mixed_seed(*numbers: int) -> int:
    """64 bits from numbers of 0 or more; mixing, not adding, keeps neighbouring seeds and epochs apart."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])
