"""Images decoded once and held in memory, for sets that fit."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from torch import Tensor

from mlaan.data.files import ImageFiles
from mlaan.data.store import Unreadable
from mlaan.errors import UserError
from mlaan.free_memory import free_memory

_SHARE = 0.8
"""Of the memory that is free at the start; the rest is for training."""
_CHUNK = 256


class HeldImages:
    """Image files, decoded. What could not be read stays so."""

    def __init__(self, files: ImageFiles, images: Sequence[Tensor | Unreadable]) -> None:
        self._files, self._images = files, images

    @classmethod
    def load(cls, parts: Sequence[ImageFiles], threads: int) -> list["HeldImages"]:
        """Decodes all files of some parts.

        Raises:
            UserError: they take more memory than is free; said at once where their sizes are known.
        """
        room = _SHARE * free_memory()
        if all(files.sizes is not None for files in parts):
            _hold(sum(_pixels(files) for files in parts), room, "decoded, the images take")
        held, used = [], 0
        with ThreadPoolExecutor(max(1, threads)) as pool:
            for files in parts:
                images: list[Tensor | Unreadable] = []
                for first in range(0, len(files), _CHUNK):
                    some = range(first, min(first + _CHUNK, len(files)))
                    images += pool.map(lambda index, files=files: _read(files, index), some)
                    used += sum(image.nbytes for image in images[first:] if isinstance(image, Tensor))
                    _hold(used, room, f"the first {len(images):,} images of {files.root} and those before take")
                held.append(cls(files, images))
        return held

    @property
    def labels(self) -> Tensor:
        return self._files.labels

    def __len__(self) -> int:
        return len(self._files)

    def name(self, index: int) -> str:
        return self._files.name(index)

    def read(self, index: int) -> Tensor:
        """(3, H, W) uint8, the tensor that is held: not to be written to. Raises Unreadable."""
        image = self._images[index]
        if isinstance(image, Unreadable):
            raise image
        return image

    def fingerprint(self) -> int:
        return self._files.fingerprint()


def _read(files: ImageFiles, index: int) -> Tensor | Unreadable:
    try:
        return files.read(index)
    except Unreadable as error:
        return error


def _pixels(files: ImageFiles) -> int:
    assert files.sizes is not None
    return 3 * int(files.sizes.astype("int64").prod(axis=1).sum())


def _hold(used: int, room: float, what: str) -> None:
    if used > room:
        raise UserError(
            f"data.backend = 'memory', but {what} {used:,} bytes, and {int(room):,} of the free memory are for them: "
            "set data.backend = 'torchvision', or pack the folder with `mlaan data pack` and set data.root to that"
        )
