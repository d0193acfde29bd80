"""Files that are written whole or not at all, with their own checksum, and that run no code when read.

Such a file is what `torch.save` writes, a zip archive, and the archive's comment is the SHA-256 of everything before
it. So `torch.load(file, weights_only=True)` reads it, too.
"""

import hashlib
import os
import pickle
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import torch

from mlaan.atomic import replace_by_copy, replacing
from mlaan.errors import UserError

_MAGIC = b"mlaan checkpoint, sha256 "
_COMMENT = len(_MAGIC) + 2 * hashlib.sha256().digest_size
_LENGTH = struct.Struct("<H")
_ZIP_START, _ZIP_END = b"PK\x03\x04", b"PK\x05\x06"
_ZIP_END_SIZE = 22
_CHUNK = 1 << 20


class Damaged(UserError):
    """The file was written by mlaan, but it is cut short or its checksum does not fit."""


def write(content: Mapping[str, Any], path: Path, links: Sequence[Path] = ()) -> None:
    """Writes `path`, and the same content under the names `links`.

    Whatever happens on the way, each name holds its old file or the whole new one. `path` changes after `links`.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    try:
        with replacing(path) as file:
            torch.save(dict(content), file)
            _sign(file)
            os.fsync(file.fileno())
            for link in links:
                replace_by_copy(Path(file.name), link)
    except (OSError, RuntimeError) as error:  # torch's zip writer turns a full disk into a RuntimeError
        reason = getattr(error, "strerror", None) or "its folder takes no more bytes"
        raise UserError(f"cannot write {path}: {reason}: make room there") from error


def read(path: Path) -> dict[str, Any]:
    """What `write` wrote, on the CPU.

    Raises:
        Damaged: it is cut short, or its checksum does not fit.
        UserError: no such file, or another one.
    """
    try:
        with path.open("rb") as file:
            _verify(file, path)
            file.seek(0)
            content = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"no checkpoint {path}: give a run folder or a .pt file that `mlaan train` wrote") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except pickle.UnpicklingError:
        raise UserError(
            f"{path} holds objects that no checkpoint of mlaan holds, and nothing in it was executed: "
            "use only files that `mlaan train` wrote"
        ) from None
    return content if isinstance(content, dict) else {}


def _sign(file: BinaryIO) -> None:
    """Gives the zip archive in `file` its checksum as archive comment."""
    file.seek(-_LENGTH.size, os.SEEK_END)
    file.write(_LENGTH.pack(_COMMENT))
    file.seek(0)
    digest = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
    file.write(_MAGIC + digest.encode())
    file.flush()


def _verify(file: BinaryIO, path: Path) -> None:
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    start = file.read(len(_ZIP_START))
    file.seek(max(0, size - _COMMENT))
    comment = file.read()
    if not comment.startswith(_MAGIC):
        is_whole_zip = comment[-_ZIP_END_SIZE:].startswith(_ZIP_END)  # torch.save by itself writes no comment
        if is_whole_zip or start != _ZIP_START[: len(start)]:
            raise UserError(
                f"{path} is not a checkpoint of mlaan, and nothing in it was executed: "
                "give a run folder or a .pt file that `mlaan train` wrote"
            )
        raise Damaged(f"{path} is cut short, it ends after {size} bytes")
    file.seek(0)
    digest = hashlib.sha256()
    for left in range(size - _COMMENT, 0, -_CHUNK):
        digest.update(file.read(min(_CHUNK, left)))
    if _MAGIC + digest.hexdigest().encode() != comment:
        raise Damaged(f"{path} is damaged, its checksum does not fit")
