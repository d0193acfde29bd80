"""Images packed into a few large files by `mlaan data pack`."""

import os
import zlib
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from mlaan.data.arrays import load_arrays
from mlaan.data.mapped import MappedRecords, checksum
from mlaan.data.store import Unreadable
from mlaan.errors import UserError

INDEX = "index.npz"
VERSION = 1


class Index(NamedTuple):
    """What is known of the images of one part, as arrays: index.npz holds them by these names.

    Attributes:
        version: 0-dim.
        form: 0-dim bytes, "jpeg" or "uint8" (height, width, 3).
        classes: (classes,) bytes.
        shards, offsets, lengths: (N,) where each image's bytes are.
        heights, widths, labels: (N,).
        names: (N,) bytes, paths in the folder that was packed.
        checksums: (N,) uint32, CRC-32 of each image's bytes.
        digests: SHA-256 of each shard, hexadecimal bytes.
        left_out: names of the images that could not be used, bytes.
        reasons: why, bytes.
    """

    version: np.ndarray
    form: np.ndarray
    classes: np.ndarray
    shards: np.ndarray
    offsets: np.ndarray
    lengths: np.ndarray
    heights: np.ndarray
    widths: np.ndarray
    labels: np.ndarray
    names: np.ndarray
    checksums: np.ndarray
    digests: np.ndarray
    left_out: np.ndarray
    reasons: np.ndarray


def shard_name(number: int) -> str:
    return f"shard-{number:05d}.bin"


def is_packed(folder: Path) -> bool:
    """Whether a folder holds one part of a packed set, whole."""
    return (folder / INDEX).is_file()


class PackedImages:
    """One part of a packed set. Each image's checksum is looked at when it is first read.

    Attributes:
        classes: names of the classes.
        numbered: whether they are numbers without names.
        left_out: {path in the folder that was packed: reason} of the images that could not be used.
        note: a line for the person who trains; "" where nothing was left out.
    """

    numbered = False

    def __init__(self, folder: Path, index: Index) -> None:
        self.folder = folder
        self.classes = [os.fsdecode(bytes(name)) for name in index.classes]
        self.left_out = dict(zip(_texts(index.left_out), _texts(index.reasons), strict=True))
        self._labels = torch.from_numpy(index.labels.astype(np.int64))
        self._names, self._checksums = index.names, index.checksums
        self._sizes = np.stack([index.heights, index.widths], 1)
        self._is_jpeg = bytes(index.form.item()) == b"jpeg"
        files = [folder / shard_name(number) for number in range(len(index.digests))]
        self._records = MappedRecords(files, index.shards, index.offsets, index.lengths)
        self._verified = torch.zeros(len(self), dtype=torch.uint8).share_memory_()  # by any of the processes
        count = len(self.left_out)
        self.note = f"{folder}: {count} files were left out when it was packed" if count else ""

    @classmethod
    def open(cls, folder: Path) -> "PackedImages":
        """Reads the index.

        Raises:
            UserError: it is missing, damaged or of another version, or a shard is missing or cut short.
        """
        place, again = folder / INDEX, f"delete {folder} and run `mlaan data pack` anew"
        try:
            version = int(load_arrays(place, ["version"])["version"])
            arrays = load_arrays(place, Index._fields) if version == VERSION else {}
        except FileNotFoundError:
            raise UserError(f"{folder} holds no packed images: run `mlaan data pack` to its end") from None
        except ValueError as damage:
            raise UserError(f"{place} is damaged ({damage}): {again}") from None
        if version != VERSION:
            raise UserError(f"{place} has version {version}, this mlaan reads {VERSION}: {again}")
        index = Index(**arrays)
        images = cls(folder, index)
        ends = np.zeros(len(index.digests), dtype=np.int64)
        np.maximum.at(ends, index.shards, index.offsets + index.lengths)
        for path, end in zip(images._records.files, ends.tolist(), strict=True):
            if not path.is_file() or path.stat().st_size < end:
                raise UserError(f"{path} is missing or cut short: copy it anew, or {again}")
        return images

    @property
    def labels(self) -> Tensor:
        return self._labels

    def __len__(self) -> int:
        return len(self._labels)

    def name(self, index: int) -> str:
        return f"{bytes(self._names[index]).decode(errors='replace')} in {self.folder}"

    def read(self, index: int) -> Tensor:
        """(3, H, W) uint8: of raw images a view of the file, of JPEG what torchvision decodes. Raises Unreadable."""
        from torchvision.io import ImageReadMode, decode_jpeg

        try:
            record = self._records.read(index)
            if not self._verified[index]:
                if checksum(record) != int(self._checksums[index]):
                    raise OSError("its checksum does not fit")
                self._verified[index] = 1
            if self._is_jpeg:
                return cast(Tensor, decode_jpeg(record, ImageReadMode.RGB))
        except (OSError, ValueError, RuntimeError) as error:
            raise Unreadable(self.name(index), str(error)) from None
        height, width = map(int, self._sizes[index])
        return record.view(height, width, 3).permute(2, 0, 1)

    def fingerprint(self) -> int:
        state: Any = 0
        for part in (self._labels.numpy(), self._names, self._checksums):
            state = zlib.crc32(np.ascontiguousarray(part).tobytes(), state)
        return state


def _texts(names: np.ndarray) -> list[str]:
    return [bytes(name).decode(errors="replace") for name in names]
