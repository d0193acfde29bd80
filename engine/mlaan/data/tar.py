"""Images in tar files as WebDataset writes them: members of one stem belong together.

`<key>.jpg`, `.jpeg` or `.png` is the image; `<key>.cls` its class as a decimal number, or `<key>.json` an object with
"label". The files are data.root/train/*.tar and data.root/val/*.tar, or data.root/*train*.tar and data.root/*val*.tar.
"""

import hashlib
import json
import os
import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mlaan.data.mapped import MappedRecords
from mlaan.data.store import Unreadable
from mlaan.errors import UserError

_IMAGES = ("jpg", "jpeg", "png")


def has_tars(root: Path, part: str) -> bool:
    """Whether a folder holds a part as tar files."""
    return bool(_files(root, part))


class TarImages:
    """One part of a set in tar files. The members are listed once; the list is kept in ~/.cache/mlaan.

    Attributes:
        classes: "0", "1", … up to the highest label.
        note: a line for the person who trains; "" where there is nothing to say.
    """

    def __init__(self, files: list[Path], table: dict[str, np.ndarray]) -> None:
        self._labels = torch.from_numpy(table["labels"].astype(np.int64))
        self._names = table["names"]
        self._records = MappedRecords(files, table["shards"], table["offsets"], table["lengths"])
        self.classes = [str(label) for label in range(int(self._labels.max()) + 1)]
        self.note = bytes(table["note"].item()).decode()

    @classmethod
    def open(cls, root: Path, part: str) -> "TarImages":
        """Lists the tar files of a part.

        Raises:
            UserError: there is none, one is compressed, or none holds an image with a class.
        """
        files = _files(root, part)
        if not files:
            raise UserError(f"data.root = {str(root)!r} holds no tar files of {part}: name the folder that does")
        stamp = "\n".join(f"{path.resolve()} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in files)
        digest = hashlib.sha256(stamp.encode()).hexdigest()[:32]
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

        try:
            image = decode_image(self._records.read(index), ImageReadMode.RGB)
        except (OSError, ValueError, RuntimeError) as error:
            raise Unreadable(self.name(index), str(error)) from None
        if image.ndim != 3 or image.dtype != torch.uint8:
            raise Unreadable(self.name(index), f"it holds {tuple(image.shape)} {image.dtype}")
        return image

    def fingerprint(self) -> int:
        state = zlib.crc32(self._labels.numpy().tobytes())
        return zlib.crc32(self._names.tobytes(), state)


def _files(root: Path, part: str) -> list[Path]:
    inside = sorted((root / part).glob("*.tar*")) if (root / part).is_dir() else []
    return inside or sorted(path for path in root.glob("*.tar*") if part in path.name.lower())


def _list(files: list[Path], cache: Path) -> dict[str, np.ndarray]:
    """Reads all members' headers and labels, and keeps what it found."""
    rows: list[tuple[int, int, int, int, str]] = []
    faults = []
    for shard, path in enumerate(files):
        if path.suffix != ".tar":
            raise UserError(
                f"{path} is compressed, so that images cannot be picked out of it: unpack it to a plain .tar"
            )
        images: dict[str, tarfile.TarInfo] = {}
        labels: dict[str, int] = {}
        size = path.stat().st_size
        try:
            with tarfile.open(path, "r:") as archive:
                for member in archive:
                    stem, _, kind = member.name.rpartition(".")
                    if not member.isfile() or member.offset_data + member.size > size:
                        continue
                    if kind.lower() in _IMAGES:
                        images[stem] = member
                    elif kind in ("cls", "json") and (content := archive.extractfile(member)):
                        label = _label(kind, content.read())
                        if label is not None:
                            labels[stem] = label
        except tarfile.TarError as error:
            faults.append(f"{path} is damaged ({error})")
        whole = [stem for stem in images if stem in labels]
        if len(whole) < len(images):
            faults.append(f"{path}: {len(images) - len(whole)} images without a class are left out")
        rows += [
            (shard, images[stem].offset_data, images[stem].size, labels[stem], images[stem].name) for stem in whole
        ]
    if not rows:
        raise UserError(f"{files[0]} and the tar files beside it hold no image with a .cls or a .json that has a label")
    shards, offsets, lengths, classes, names = zip(*rows, strict=True)
    table = {
        "shards": np.array(shards, dtype=np.int32),
        "offsets": np.array(offsets, dtype=np.int64),
        "lengths": np.array(lengths, dtype=np.int64),
        "labels": np.array(classes, dtype=np.int64),
        "names": np.array([name.encode() for name in names]),
        "note": np.array("; ".join(faults).encode()),
    }
    temporary = cache.with_name(f".{cache.name}.{os.getpid()}.tmp")
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            np.savez(file, **table)
        temporary.replace(cache)
    except OSError:  # the list is made anew next time, which costs time and nothing else
        temporary.unlink(missing_ok=True)
    return table


def _label(kind: str, content: bytes) -> int | None:
    try:
        label = int(content) if kind == "cls" else json.loads(content)["label"]
    except (ValueError, KeyError, TypeError):
        return None
    return label if isinstance(label, int) and label >= 0 else None


def _cached(place: Path) -> dict[str, np.ndarray] | None:
    try:
        with np.load(place, allow_pickle=False) as content:
            return {name: content[name] for name in ("shards", "offsets", "lengths", "labels", "names", "note")}
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile, zlib.error):
        return None
