"""Batches from images that are read and cut to size on the fly, by worker processes."""

from collections.abc import Iterator, Sequence
from random import Random
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import data

from mlaan.data.dataset import Batch
from mlaan.data.loader import Loader, mixed_seed
from mlaan.data.prefetch import SideStream, ahead
from mlaan.data.store import Images, Unreadable
from mlaan.data.views import View, ViewPlan
from mlaan.data.workers import Killed, read_in_workers
from mlaan.errors import UserError
from mlaan_kernels.normalize_augment import normalize_augment


class Views(NamedTuple):
    """What workers hand over for one batch.

    Attributes:
        pixels: (N, size, size, 3) uint8.
        labels: (N,) int64.
        seeds: (N,) int64; each decides whether its image is mirrored.
        unreadable: (name, reason) of the images that are missing.
    """

    pixels: Tensor
    labels: Tensor
    seeds: Tensor
    unreadable: list[tuple[str, str]]


class ViewLoader(Loader):
    """Endless epochs over stored images: workers read and cut, uint8 goes to the device and is made ready there.

    The view of an image and whether it is mirrored depend on (seed, epoch, number of the image) alone, so batches do
    not depend on the number of workers, nor on the kind of storage. On a GPU the next batch is copied and normalised
    on a stream of its own while a step runs. Images come in channels_last.
    """

    def __init__(
        self,
        images: Images,
        plan: ViewPlan,
        *,
        training: bool,
        batch: int,
        device: torch.device | str,
        mean: Sequence[float],
        std: Sequence[float],
        seed: int,
        workers: int,
    ) -> None:
        """In training the images come shuffled, in random views, half of them mirrored, and what does not fill a batch
        is left to another epoch; in testing each comes once, in order. `workers` is the number of processes that read,
        0 for this very one; the rest as in `Loader`.
        """
        super().__init__(len(images), batch=batch, device=device, shuffle=training, drop_last=training, seed=seed)
        self.images, self.plan, self.training, self.workers = images, plan, training, workers
        self._mean = torch.tensor(mean, dtype=torch.float32, device=self.device)
        self._std = torch.tensor(std, dtype=torch.float32, device=self.device)
        self._side = SideStream(self.device) if self.device.type == "cuda" else None

    def batches(self, epoch: int, first: int) -> Iterator[Batch | None]:
        """Raises UserError where no image of a batch can be read, or workers are killed again and again."""
        return ahead(self._checked(self._read(epoch, first)), self._prepare, self._side)

    def identity(self) -> dict[str, int]:
        return super().identity() | {"files": self.images.fingerprint()}

    def _prepare(self, views: Views) -> Batch:
        pixels, labels, seeds = (tensor.to(self.device, non_blocking=True) for tensor in views[:3])
        images = normalize_augment(pixels, self._mean, self._std, seeds, flip=self.training, dtype=torch.float32)
        return Batch(images, labels)

    def _checked(self, read: Iterator[Views]) -> Iterator[Views | None]:
        """Says what is missing. A single image is left out of training: BatchNorm could not do with it."""
        missing = 0
        for views in read:
            for name, reason in views.unreadable:
                self.leave_out(Unreadable(name, reason))
            if len(views.labels):
                missing = 0
                alone = self.training and len(views.labels) == 1 and views.unreadable
                yield None if alone else views
                continue
            missing += len(views.unreadable)
            if missing > 1:
                raise UserError(
                    f"none of the {missing} images that are due can be read ({Unreadable(*views.unreadable[0])}): "
                    "is data.root still there? When it is, go on with --resume"
                )
            yield None

    def _read(self, epoch: int, first: int) -> Iterator[Views]:
        """What the workers give; where one is killed, others begin with the batch that is due."""
        view = self.plan.train_view(epoch) if self.training else self.plan.test_view()
        batches = _Batches(self.images, view, self.seed, epoch)
        chosen = [numbers.tolist() for numbers in self.order(epoch).split(self.batch)]
        done, killed_at = first, -1
        while True:
            reader = data.DataLoader(
                batches,
                batch_size=None,
                sampler=chosen[done : len(self)],  # pyright: ignore[reportArgumentType]
                num_workers=self.workers,
                pin_memory=self.device.type == "cuda",
                generator=torch.Generator(),  # by default it would draw from the run's own random numbers
            )
            try:
                for views in read_in_workers(reader):
                    yield views
                    done += 1
                return
            except Killed as killed:
                if killed_at == done:
                    raise UserError(
                        f"data.workers = {self.workers}: a process that reads images was killed twice at one batch "
                        f"({killed}): set data.workers lower if memory (in a container: --shm-size) is short; "
                        "`mlaan data check` finds a file that crashes the decoder"
                    ) from None
                killed_at = done
                self.say(f"a process that reads images was killed ({killed}); others read that batch again")


class _Batches(data.Dataset[Any]):
    """Whole batches of one epoch by the numbers of their images."""

    def __init__(self, images: Images, view: View, seed: int, epoch: int) -> None:
        self._images, self._view, self._seed, self._epoch = images, view, seed, epoch

    def __getitem__(self, chosen: list[int]) -> Views:
        found, pixels, seeds, unreadable = [], [], [], []
        for index in chosen:
            seed = mixed_seed(self._seed, self._epoch, 1 + index)
            try:
                view = self._view(self._images.read(index), Random(seed))
            except Unreadable as error:
                unreadable.append((error.name, error.reason))
                continue
            pixels.append(view.permute(1, 2, 0))
            seeds.append(signed(seed))
            found.append(index)
        size = self._view.size
        joined = torch.stack(pixels) if pixels else torch.empty(0, size, size, 3, dtype=torch.uint8)
        return Views(joined, self._images.labels[found], torch.tensor(seeds, dtype=torch.int64), unreadable)


def signed(seed: int) -> int:
    """The same 64 bits as a signed number, which an int64 tensor takes."""
    return seed - (1 << 64) if seed >> 63 else seed
