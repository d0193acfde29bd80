"""Images in tar files as WebDataset writes them: members of one stem belong together.

`<key>.jpg`, `.jpeg` or `.png` is the image; `<key>.cls` its class as a decimal number, or else `<key>.json` an object
with "label". The files are data.root/train/*.tar and data.root/val/*.tar, or data.root/*train*.tar and
data.root/*val*.tar.
"""

import hashlib
import json
import os
import tarfile
import zlib
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mlaan.atomic import replacing
from mlaan.data.arrays import load_arrays
from mlaan.data.mapped import MappedRecords
from mlaan.data.store import Unreadable
from mlaan.errors import UserError

_IMAGES = ("jpg", "jpeg", "png")
_COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".lz4")
_PARTS = ("train", "val")
_LABELS = 1 << 20
"""No label is as high as this: such a number is an identity, or damaged."""
_LISTING = 2
"""Goes up whenever another list is made of the same files."""
_BLOCK = 512


class _Listed(NamedTuple):
    """What a tar file holds.

    Attributes:
        rows: (offset, length, label, name) of each image.
        faults: what a person should know.
    """

    rows: list[tuple[int, int, int, str]]
    faults: list[str]


def has_tars(root: Path, part: str) -> bool:
    """Whether a folder holds a part as tar files."""
    return bool(_files(root, part))


class TarImages:
    """One part of a set in tar files. The members are listed once; the list is kept in ~/.cache/mlaan.

    Attributes:
        classes: "0", "1", … up to the highest label.
        numbered: whether classes are numbers without names.
        note: a line for the person who trains; "" where there is nothing to say.
    """

    numbered = True

    def __init__(self, files: list[Path], table: dict[str, np.ndarray]) -> None:
        self._labels = torch.from_numpy(table["labels"].astype(np.int64))
        self._names = table["names"]
        self._records = MappedRecords(files, table["shards"], table["offsets"], table["lengths"])
        self.classes = [str(label) for label in range(int(self._labels.max()) + 1)]
        self.note = bytes(table["note"].item()).decode(errors="replace")

    @classmethod
    def open(cls, root: Path, part: str) -> "TarImages":
        """Lists the tar files of a part.

        Raises:
            UserError: there is none, one is compressed or cannot be read, or none holds an image with a class.
        """
        files = _files(root, part)
        if not files:
            raise UserError(f"data.root = {str(root)!r} holds no tar files of {part}: name the folder that does")
        for path in files:
            if path.suffix in _COMPRESSED:
                raise UserError(
                    f"{path} is compressed, so that images cannot be picked out of it: unpack it to a plain .tar"
                )
        digest = hashlib.sha256(os.fsencode("\n".join([str(_LISTING), *map(_stamp, files)]))).hexdigest()[:32]
        cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "mlaan" / f"tars-{digest}.npz"
        return cls(files, _cached(cache) or _list(files, cache))

    @property
    def labels(self) -> Tensor:
        return self._labels

    def __len__(self) -> int:
        return len(self._labels)

    def name(self, index: int) -> str:
        place = self._records.files[int(self._records.shards[index])]
        return f"{bytes(self._names[index]).decode(errors='replace')} in {place}"

    def read(self, index: int) -> Tensor:
        """(3, H, W) uint8; raises Unreadable."""
        from torchvision.io import ImageReadMode, decode_image
        from torchvision.transforms.v2.functional import to_dtype

        try:
            image = decode_image(self._records.read(index), ImageReadMode.RGB)
        except (OSError, ValueError, RuntimeError) as error:
            raise Unreadable(self.name(index), str(error)) from None
        if image.ndim != 3:
            raise Unreadable(self.name(index), f"it holds {len(image)} pictures")
        return to_dtype(image, torch.uint8, scale=True)  # PNG files may have 16 bits

    def fingerprint(self) -> int:
        state = zlib.crc32(self._labels.numpy().tobytes())
        return zlib.crc32(self._names.tobytes(), state)


def _files(root: Path, part: str) -> list[Path]:
    """The tar files of a part, none where it is a folder of folders: such tars are what it was unpacked from."""
    folder = root / part
    if folder.is_dir():
        has_folders = any(path.is_dir() for path in folder.glob("[!.]*"))
        return [] if has_folders else _tars(folder)
    found = [path for path in _tars(root) if part in path.name.lower()]
    for path in found:
        if all(name in path.name.lower() for name in _PARTS):
            raise UserError(
                f"{path} may be of train or of val: give its name one of the words, or move the files of each into "
                f"{root / 'train'} and {root / 'val'}"
            )
    return found


def _tars(folder: Path) -> list[Path]:
    """Tar files, compressed ones too; not what lies beside them, such as checksums."""
    return sorted(path for path in folder.glob("*.tar*") if path.suffix == ".tar" or path.suffix in _COMPRESSED)


def _stamp(path: Path) -> str:
    """What changes when a file does."""
    try:
        found = path.stat()
    except OSError as error:
        raise _cannot_read(path, error) from None
    return f"{path.resolve()} {found.st_size} {found.st_mtime_ns}"


def _list(files: list[Path], cache: Path) -> dict[str, np.ndarray]:
    """Reads all members' headers and labels, and keeps what it found."""
    listed = [_list_file(path) for path in files]
    faults = "; ".join(fault for one in listed for fault in one.faults)
    rows = [(shard, *row) for shard, one in enumerate(listed) for row in one.rows]
    if not rows:
        raise UserError(
            f"{files[0]} and the tar files beside it hold no image with a .cls or a .json that has a label"
            f"{faults and f' ({faults})'}: put the class of <key>.jpg into <key>.cls"
        )
    shards, offsets, lengths, classes, names = zip(*rows, strict=True)
    table = {
        "shards": np.array(shards, dtype=np.int32),
        "offsets": np.array(offsets, dtype=np.int64),
        "lengths": np.array(lengths, dtype=np.int64),
        "labels": np.array(classes, dtype=np.int64),
        "names": np.array([os.fsencode(name) for name in names]),
        "note": np.array(os.fsencode(faults)),
    }
    with suppress(OSError):  # the list is then made anew next time, which costs time and nothing else
        cache.parent.mkdir(parents=True, exist_ok=True)
        with replacing(cache) as file:
            np.savez(file, **table)
    return table


def _list_file(path: Path) -> _Listed:
    images: dict[str, tarfile.TarInfo] = {}
    labels: dict[str, int] = {}
    faults = []
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            try:
                with tarfile.open(fileobj=file, mode="r:") as archive:
                    for member in archive:
                        stem, _, kind = member.name.rpartition(".")
                        if not member.isfile() or member.offset_data + member.size > size:
                            continue
                        if kind.lower() in _IMAGES:
                            images[stem] = member
                        elif kind == "cls" or (kind == "json" and stem not in labels):
                            content = archive.extractfile(member)
                            label = _label(kind, content.read()) if content else None
                            if label is not None:
                                labels[stem] = label
                    end = archive.offset
                # At a header that is damaged, the module stops as at the end, which is a block of zeros.
                file.seek(end)
                if file.read(_BLOCK) != bytes(_BLOCK):
                    faults.append(f"{path} is damaged or cut short at byte {end:,}: what comes after is left out")
            except tarfile.TarError as error:
                faults.append(f"{path} is damaged or cut short ({error})")
    except OSError as error:
        raise _cannot_read(path, error) from None
    whole = [stem for stem in images if stem in labels]
    if lacking := len(images) - len(whole):
        faults.append(f"{path}: {lacking} images without a class are left out")
    if lacking := len(labels) - len(whole):
        faults.append(f"{path}: {lacking} classes without an image (.jpg, .jpeg or .png) are left out")
    rows = [(images[stem].offset_data, images[stem].size, labels[stem], images[stem].name) for stem in whole]
    return _Listed(rows, faults)


def _cannot_read(path: Path, error: OSError) -> UserError:
    return UserError(f"cannot read {path}: {error.strerror or error}: see to that, or take it out of the folder")


def _label(kind: str, content: bytes) -> int | None:
    try:
        label = int(content) if kind == "cls" else json.loads(content)["label"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return label if type(label) is int and 0 <= label < _LABELS else None


def _cached(place: Path) -> dict[str, np.ndarray] | None:
    try:
        return load_arrays(place, ("shards", "offsets", "lengths", "labels", "names", "note"))
    except (FileNotFoundError, ValueError):
        return None
