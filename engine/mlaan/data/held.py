"""Images decoded once and held in memory, for sets that fit."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from torch import Tensor

from mlaan.data.files import ImageFiles
from mlaan.data.store import Unreadable
from mlaan.errors import UserError

_SHARE = 0.8
"""Of the memory that is free at the start; the rest is for training."""
_CHUNK = 256


class _Groups(NamedTuple):
    """Where a version of Linux's control groups keeps a group's limit of memory, its use, and how much are files."""

    root: str
    limit: str
    used: str
    files: tuple[str, str]


_FIRST = _Groups(
    "/sys/fs/cgroup/memory",
    "memory.limit_in_bytes",
    "memory.usage_in_bytes",
    ("total_active_file", "total_inactive_file"),
)
_SECOND = _Groups("/sys/fs/cgroup", "memory.max", "memory.current", ("active_file", "inactive_file"))


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


def free_memory() -> float:
    """Bytes that this process could still have, without swap; infinite where the system does not tell."""
    free = []
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free.append(1024 * int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1]))
    free += _left_to_groups()
    return min(free, default=float("inf"))


def _left_to_groups() -> Iterator[int]:
    """Bytes left to the control group of this process and to each one above that has a limit: a container, a job."""
    with suppress(OSError, ValueError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, kinds, own = line.split(":", 2)
            if kinds and "memory" not in kinds.split(","):
                continue
            version = _FIRST if kinds else _SECOND
            below = PurePosixPath(own.lstrip("/"))
            for group in (below, *below.parents):
                with suppress(OSError, ValueError):  # "max" where there is no limit
                    yield _left(version, Path(version.root) / group)


def _left(version: _Groups, group: Path) -> int:
    """What was read of files counts as used, but is given up where memory is short."""
    limit, used = (int((group / name).read_text()) for name in (version.limit, version.used))
    parts = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    return limit - used + sum(int(parts.get(name, "0")) for name in version.files)


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
