"""Batches from image files, decoded on the fly by worker processes."""

import os
import signal
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from threading import Thread
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import data

from mlaan.data.augment import normalise
from mlaan.data.dataset import Batch
from mlaan.data.loader import Loader, mixed_seed
from mlaan.errors import UserError

View = Callable[[Tensor, Random], Tensor]
"""Makes uint8 (C, size, size) of uint8 (C, H, W); random numbers come from the second argument."""


@dataclass(frozen=True, eq=False)
class ImageFiles:
    """Image files below one folder, kept so compactly that every worker can share a million of them."""

    root: Path
    names: np.ndarray
    """(N,) bytes: paths below `root`."""
    labels: Tensor
    """(N,) int64."""

    def __len__(self) -> int:
        return len(self.labels)

    def path(self, index: int) -> str:
        return os.path.join(self.root, os.fsdecode(self.names[index]))

    def fingerprint(self) -> int:
        """32 bits that change with the names, their order and the labels."""
        return zlib.crc32(self.labels.numpy().tobytes(), zlib.crc32(self.names.tobytes()))


def decode(path: str) -> Tensor:
    """The image of a file, (3, H, W) uint8; grey ones get three equal channels.

    Raises UserError naming the file where it cannot be read or decoded.
    """
    from torchvision.io import ImageReadMode, decode_image
    from torchvision.transforms.v2.functional import to_dtype

    try:
        image = decode_image(path, ImageReadMode.RGB)
    except (RuntimeError, OSError) as error:
        raise UserError(f"{path} cannot be decoded ({error}): replace the file, or take it out") from None
    if image.ndim != 3:
        raise UserError(f"{path} holds {len(image)} pictures: replace the file, or take it out")
    return to_dtype(image, torch.uint8, scale=True)  # PNG files may have 16 bits


class FolderLoader(Loader):
    """Endless epochs over image files; uint8 goes to the device and is normalised there.

    The view of an image depends on (seed, epoch, number of the image) alone, so batches do not depend on the
    number of workers.
    """

    def __init__(
        self,
        files: ImageFiles,
        view: View,
        *,
        batch: int,
        device: torch.device | str,
        mean: Sequence[float],
        std: Sequence[float],
        shuffle: bool,
        drop_last: bool,
        seed: int,
        workers: int,
    ) -> None:
        """`workers` is the number of processes that decode, 0 for this very one; the rest as in `Loader`."""
        super().__init__(len(files), batch=batch, device=device, shuffle=shuffle, drop_last=drop_last, seed=seed)
        self.files = files
        self.view = view
        self.workers = workers
        self._mean = torch.tensor(mean, dtype=torch.float32, device=self.device)
        self._std = torch.tensor(std, dtype=torch.float32, device=self.device)

    def batches(self, epoch: int, first: int) -> Iterator[Batch]:
        """Raises UserError for a file that cannot be decoded, and torch's RuntimeError for a worker that was killed."""
        chosen = self.order(epoch).split(self.batch)[first : len(self)]
        reader = data.DataLoader(
            _Views(self.files, self.view, self.seed, epoch),
            batch_size=None,
            sampler=[images.tolist() for images in chosen],  # pyright: ignore[reportArgumentType]
            num_workers=self.workers,
            worker_init_fn=_obey_the_parent_alone,
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),  # by default it would draw from the run's own random numbers
        )
        for result in _started(reader):  # no name holds the iterator: with the loop, its workers end
            if isinstance(result, UserError):
                raise result
            images, labels = (tensor.to(self.device, non_blocking=True) for tensor in result)
            yield Batch(normalise(images, self._mean, self._std), labels)

    def identity(self) -> dict[str, int]:
        return super().identity() | {"files": self.files.fingerprint()}


class _Views(data.Dataset[Any]):
    """Whole batches of one epoch by the numbers of their images."""

    def __init__(self, files: ImageFiles, view: View, seed: int, epoch: int) -> None:
        self._files, self._view, self._seed, self._epoch = files, view, seed, epoch

    def __getitem__(self, chosen: list[int]) -> tuple[Tensor, Tensor] | UserError:
        """Images (N, 3, size, size) uint8 and labels (N,) int64; what is raised here would lose its one line."""
        try:
            return torch.stack([self._image(index) for index in chosen]), self._files.labels[chosen]
        except UserError as error:
            return error

    def _image(self, index: int) -> Tensor:
        random = Random(mixed_seed(self._seed, self._epoch, 1 + index))
        return self._view(decode(self._files.path(index)), random)


def _started(reader: data.DataLoader[Any]) -> Iterator[Any]:
    """Starts the workers with Ctrl-C and SIGTERM held, until each has made up its mind about them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        return iter(reader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _obey_the_parent_alone(worker: int) -> None:
    """A stop, by Ctrl-C or a cluster's SIGTERM, reaches all processes at once, but the training process still
    finishes its step: it decides, and ends its workers itself."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # a server that forks the workers passes no mask on
    Thread(target=_wait_for_the_parents_signal, daemon=True).start()


def _wait_for_the_parents_signal() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
