"""Checkpoints: a file written whole or not at all, with its own checksum, that runs no code when read.

The file is what `torch.save` writes, a zip archive, and the archive's comment is the SHA-256 of everything
before it. So `torch.load(file, weights_only=True)` reads it, too.
"""

import hashlib
import os
import pickle
import shutil
import struct
import tomllib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from mlaan.config.values import show
from mlaan.errors import UserError

FORMAT = 1
"""Raised whenever what is written no longer fits the `load` of before."""

CHANGEABLE = ("run.", "train.epochs", "memory.limit", "data.root", "data.workers", "data.download")
"""Settings that a run may go on with other values of."""

_MAGIC = b"mlaan checkpoint, sha256 "
_COMMENT = len(_MAGIC) + 2 * hashlib.sha256().digest_size
_LENGTH = struct.Struct("<H")
_ZIP_START, _ZIP_END = b"PK\x03\x04", b"PK\x05\x06"
_ZIP_END_SIZE = 22


@dataclass(frozen=True)
class Checkpoint:
    """All that a run needs to go on as if it had never stopped.

    Attributes:
        config: the resolved settings, as TOML.
        engine, loader, progress: what `state_dict()` of engine, training batches and `TrainState` gave.
        random: what `random_state` gave.
        metrics_bytes: length of metrics.jsonl at that moment.
    """

    config: str
    engine: dict[str, Any]
    loader: dict[str, Any]
    progress: dict[str, Any]
    random: dict[str, Tensor]
    metrics_bytes: int


_FIELDS = tuple(field.name for field in fields(Checkpoint))


def random_state(device: torch.device) -> dict[str, Tensor]:
    """States, uint8, of the torch generators that a run on `device` draws from."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def set_random_state(states: dict[str, Tensor], device: torch.device) -> None:
    """Puts back what `random_state` gave; on a device of another type, the CPU's part of it."""
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)


def save(checkpoint: Checkpoint, path: Path, best: Path | None = None) -> None:
    """Writes `path`, and the same content under the name `best`, if given.

    Whatever happens on the way, each name holds its old file or the whole new one. `best` changes first: a
    process that dies between the two leaves a `path` from which that epoch is trained again.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w+b") as file:
            torch.save({"format": FORMAT} | {name: getattr(checkpoint, name) for name in _FIELDS}, file)
            _sign(file)
            os.fsync(file.fileno())
        if best is not None:
            _replace_by_copy(temporary, best)
        temporary.replace(path)
        _sync_folder(path.parent)
    except (OSError, RuntimeError) as error:  # torch's zip writer turns a full disk into a RuntimeError
        reason = getattr(error, "strerror", None) or "its folder takes no more bytes"
        raise UserError(f"cannot write {path}: {reason}: make room there, then go on with --resume") from error
    finally:
        temporary.unlink(missing_ok=True)


def load(path: Path) -> Checkpoint:
    """Reads a checkpoint onto the CPU.

    Raises:
        UserError: no such file, cut short, damaged, not a checkpoint, or of another format.
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
    found = content.get("format") if isinstance(content, dict) else None
    if found != FORMAT:
        raise UserError(f"{path} has checkpoint format {found}, this mlaan reads {FORMAT}: use the mlaan that wrote it")
    return Checkpoint(**{name: content[name] for name in _FIELDS})


def require_same_run(checkpoint: Checkpoint, config: str, path: Path) -> None:
    """Checks that the checkpoint at `path` was written under the settings `config`, as TOML.

    Raises:
        UserError: a setting other than run.* and train.epochs differs; the message names it and both models.
    """
    saved, here = (flat(tomllib.loads(text)) for text in (checkpoint.config, config))
    for key in [*here, *(key for key in saved if key not in here)]:
        if not key.startswith(CHANGEABLE) and saved.get(key) != here.get(key):
            there, this = show(saved.get(key)), show(here.get(key))
            raise UserError(
                f"{path} holds a {saved['model.name']} of another run, this run trains {here['model.name']}: "
                f"{key} is {there} there and {this} here; put this run's own file back"
            )


def flat(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as one, with dotted keys."""
    values: dict[str, Any] = {}
    for key, value in table.items():
        values |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return values


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
        raise UserError(f"{path} is cut short, it ends after {size} bytes: {_instead_of(path)}")
    file.seek(0)
    digest = hashlib.sha256()
    for left in range(size - _COMMENT, 0, -_CHUNK):
        digest.update(file.read(min(_CHUNK, left)))
    if _MAGIC + digest.hexdigest().encode() != comment:
        raise UserError(f"{path} is damaged, its checksum does not fit: {_instead_of(path)}")


def _instead_of(path: Path) -> str:
    """What to do without the checkpoint at `path`; --resume and a run folder alone mean last.pt."""
    other = path.with_name("best.pt" if path.name == "last.pt" else "last.pt")
    if not other.exists() or other.samefile(path):  # both can be names of one file
        return "put a copy of it in its place, or train anew"
    fix = f"take {other}"
    return f"{fix}, or copy it over last.pt to go on from there" if path.name == "last.pt" else fix


_CHUNK = 1 << 20


def _replace_by_copy(source: Path, target: Path) -> None:
    """Gives `target` the content of `source` in one step, as a second name of the same file where it can."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        try:
            os.link(source, temporary)
        except OSError:  # file systems without hard links
            shutil.copyfile(source, temporary)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Makes the renames in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
