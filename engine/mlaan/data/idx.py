"""The IDX file format of MNIST and its relatives: a big-endian header, then unsigned bytes.

Header: two zero bytes, 0x08 for unsigned bytes, the number of dimensions, each dimension as a 32-bit integer.
"""

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np

from mlaan.errors import UserError


def read_idx(folder: Path, name: str, dimensions: int, fix: str) -> tuple[Path, np.ndarray]:
    """The file `name` or `name`.gz in `folder` and its bytes as a uint8 array of that many dimensions.

    Raises UserError for a file that is missing, unreadable or not what its header says; `fix` ends it.
    """
    path = _find(folder, name, fix)
    data = _bytes(path, fix)
    header = 4 + 4 * dimensions
    magic = 0x800 + dimensions
    if len(data) < header:
        raise UserError(f"{path} ends within its header: {len(data)} bytes, expected at least {header}; {fix}")
    found, *shape = struct.unpack(f">{1 + dimensions}I", data[:header])
    if found != magic:
        raise UserError(
            f"{path} starts with 0x{found:08x}, expected 0x{magic:08x} for bytes in {dimensions} dimensions; {fix}"
        )
    expected = math.prod(shape)
    if len(data) - header != expected:
        fault = "is cut off" if len(data) - header < expected else "goes on after its end"
        size = "x".join(map(str, shape))
        raise UserError(
            f"{path} {fault}: {len(data) - header} bytes after the header, expected {expected} for {size}; {fix}"
        )
    return path, np.frombuffer(data, np.uint8, offset=header).reshape(shape)


def _find(folder: Path, name: str, fix: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise UserError(f"{folder} holds neither {name} nor {name}.gz; {fix}")


def _bytes(path: Path, fix: str) -> bytearray:
    try:
        data = path.read_bytes()
        return bytearray(gzip.decompress(data) if path.suffix == ".gz" else data)
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise UserError(f"{path} is a damaged gzip file ({error}); {fix}") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; {fix}") from None
