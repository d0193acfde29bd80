"""Records in large files, read through the memory that the system maps them to."""

import mmap
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor


class MappedRecords:
    """Runs of bytes in files. Each process maps the files itself, when it first reads them.

    Attributes:
        files: their paths.
        shards: (N,) int32, which file each record is in.
        offsets, lengths: (N,) int64, in bytes.
    """

    def __init__(self, files: Sequence[Path], shards: np.ndarray, offsets: np.ndarray, lengths: np.ndarray) -> None:
        self.files, self.shards, self.offsets, self.lengths = list(files), shards, offsets, lengths
        self._maps: dict[int, mmap.mmap] = {}

    def __len__(self) -> int:
        return len(self.shards)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_maps": {}}

    def read(self, index: int) -> Tensor:
        """A record, (length,) uint8; not to be written to. Raises OSError where its file has lost it."""
        shard, offset, length = int(self.shards[index]), int(self.offsets[index]), int(self.lengths[index])
        if shard not in self._maps:
            with self.files[shard].open("rb") as file:
                # a private copy on writing, as tensors cannot be made of memory that cannot be written
                self._maps[shard] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        if not length:
            raise OSError("it is empty")
        if offset + length > len(self._maps[shard]):
            raise OSError(f"{self.files[shard]} ends before byte {offset + length}")
        return torch.frombuffer(self._maps[shard], dtype=torch.uint8, count=length, offset=offset)


def checksum(record: Tensor) -> int:
    """CRC-32 of a record."""
    return zlib.crc32(cast(Any, record.numpy()))
