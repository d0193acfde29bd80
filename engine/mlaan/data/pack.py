"""Packing: a folder of images becomes a few large files of small images with an index.

A part's folder first gets `pack.json`, which says of what and how it is made; then shards, each written under another
name, synced and renamed, with a list of its images beside it; then index.npz out of these lists, which go. So a pack
that was interrupted goes on behind its last whole shard, and ends with the same bytes as one that was not.
"""

import hashlib
import io
import json
import os
import zlib
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from torch import Tensor

from mlaan.atomic import LEFTOVERS, replacing
from mlaan.data.check import OpenedPart
from mlaan.data.decoders import in_order
from mlaan.data.files import ImageFiles, decode
from mlaan.data.listing import file_stamps
from mlaan.data.packed import INDEX, VERSION, Index, PackedImages, is_packed, shard_name
from mlaan.data.store import Unreadable
from mlaan.errors import UserError

SETTINGS = "pack.json"


@dataclass(frozen=True)
class PackSettings:
    """How images are packed.

    Attributes:
        size: the shorter side in pixels; smaller images stay as they are.
        form: "jpeg" or "uint8".
        quality: of JPEGs that are made; a file that is a JPEG of the right size already is copied.
        shard_bytes: about how large a shard becomes.

    Raises UserError where the size or the quality is out of range.
    """

    size: int
    form: str
    quality: int
    shard_bytes: int

    def __post_init__(self) -> None:
        if self.size < 1:
            raise UserError(f"size = {self.size} must be at least 1")
        if not 1 <= self.quality <= 100:
            raise UserError(f"quality = {self.quality} must be from 1 to 100")


class Packed(NamedTuple):
    """What came out of one part.

    Attributes:
        images: how many there are.
        size: bytes of all shards.
        left_out: {path in the folder: reason}.
    """

    images: int
    size: int
    left_out: dict[str, str]


class _Record(NamedTuple):
    """One image as packed; without content it is left out, and `reason` says why."""

    content: bytes
    height: int
    width: int
    reason: str


@dataclass
class _Shard:
    """A shard's images: rows of what the index will hold, places in the list of files among them."""

    digest: str = ""
    size: int = 0
    rows: list[tuple[int, int, int, int, int, int]] = field(default_factory=list)
    """(place in the listing, offset, length, height, width, CRC-32)."""
    left_out: list[tuple[int, str]] = field(default_factory=list)
    upto: int = 0
    """Places in the listing below this are in this shard or one before."""


def pack_part(
    opened: OpenedPart,
    folder: Path,
    out: Path,
    settings: PackSettings,
    workers: int,
    progress: Callable[[int, int], None] = lambda done, count: None,
) -> Packed:
    """Packs one part, or goes on with it; a part that is packed already is left as it is.

    Args:
        opened: what is packed.
        folder: where that lies.
        out: the part's new folder.
        workers: processes that decode.
        progress: called with the images done and all of them.

    Raises:
        UserError: `out` holds something else, or is damaged; it cannot be written, as on a full disk.
    """
    files = opened.files
    made_of = asdict(settings) | {
        "version": VERSION,
        "images": len(files),
        "source_bytes": int(file_stamps(files)[:, 0].sum()),
        "fingerprint": files.fingerprint(),
    }
    try:
        out.mkdir(parents=True, exist_ok=True)
        _claim(out, made_of)
        for leftover in out.glob(LEFTOVERS):  # of one that was killed
            leftover.unlink()
        if not is_packed(out):
            shards = _finished(out)
            _write_shards(files, out, settings, workers, shards, progress)
            _write_index(out, files, opened, settings, shards)
        packed = PackedImages.open(out)
        for listing in out.glob("shard-*.json"):
            listing.unlink()
    except OSError as error:
        raise UserError(
            f"cannot write into {out}: {error.strerror or error}: make room there, or give another folder; "
            "the same command again goes on"
        ) from None
    return Packed(len(packed), sum(path.stat().st_size for path in out.glob("shard-*.bin")), packed.left_out)


def pack_image(path: str, settings: PackSettings) -> tuple[bytes, int, int]:
    """(bytes, height, width) of one image as it is packed; raises Unreadable."""
    from torchvision.io import encode_jpeg
    from torchvision.transforms.v2.functional import resize

    image = decode(path)
    is_small = min(image.shape[1:]) <= settings.size
    if not is_small:
        image = resize(image, [settings.size], antialias=True)
    _, height, width = image.shape
    if settings.form == "uint8":
        return image.permute(1, 2, 0).contiguous().numpy().tobytes(), height, width
    try:
        if is_small:
            content = Path(path).read_bytes()
            if content.startswith(b"\xff\xd8"):
                return content, height, width
        encoded = cast(Tensor, encode_jpeg(image, quality=settings.quality))
    except (OSError, RuntimeError) as error:  # JPEG has no sides above 65,500 pixels
        raise Unreadable(path, str(error)) from None
    return encoded.numpy().tobytes(), height, width


def _claim(out: Path, made_of: dict[str, Any]) -> None:
    """Takes a folder for a pack, or finds that it is this very pack's."""
    note = out / SETTINGS
    if note.exists():
        try:
            before = dict(json.loads(note.read_text()))
        except (ValueError, TypeError):
            raise UserError(f"{note} is damaged: give a new folder") from None
        for key, value in made_of.items():
            if before.get(key) != value:
                raise UserError(
                    f"{out} holds a pack with {key} = {before.get(key)}, this one has {value}: give a new folder"
                )
    elif any(not path.match(f".{SETTINGS}.*.tmp") for path in out.iterdir()):
        raise UserError(f"{out} holds other files: give a new or empty folder")
    else:
        _write(note, json.dumps(made_of, indent=1).encode())


def _finished(out: Path) -> list[_Shard]:
    """The shards that are whole, in order."""
    shards: list[_Shard] = []
    while (listing := out / f"{shard_name(len(shards))}.json").exists():
        shard = _Shard(**json.loads(listing.read_text()))
        place = out / shard_name(len(shards))
        if not place.exists() or place.stat().st_size != shard.size:
            break
        shards.append(shard)
    return shards


def _write_shards(
    files: ImageFiles,
    out: Path,
    settings: PackSettings,
    workers: int,
    shards: list[_Shard],
    progress: Callable[[int, int], None],
) -> None:
    """Writes those that are missing, and puts them with the others."""
    first = shards[-1].upto if shards else 0
    paths = (files.path(i) for i in range(first, len(files)))
    work, died = partial(_packed, settings=settings), _Record(b"", 0, 0, "crashes the decoder")
    shard, contents = _Shard(), []
    with closing(in_order(work, died, paths, workers)) as records:
        for place, record in enumerate(records, first):
            if record.content:
                row = (place, shard.size, len(record.content), record.height, record.width, zlib.crc32(record.content))
                shard.rows.append(row)
                shard.size += len(record.content)
                contents.append(record.content)
            else:
                shard.left_out.append((place, record.reason))
            shard.upto = place + 1
            progress(shard.upto, len(files))
            if shard.size >= settings.shard_bytes or shard.upto == len(files):
                name = shard_name(len(shards))
                content = b"".join(contents)
                shard.digest = hashlib.sha256(content).hexdigest()
                _write(out / name, content)
                _write(out / f"{name}.json", json.dumps(asdict(shard)).encode())
                shards.append(shard)
                shard, contents = _Shard(), []


def _packed(path: str, settings: PackSettings) -> _Record:
    try:
        return _Record(*pack_image(path, settings), "")
    except Unreadable as error:
        return _Record(b"", 0, 0, error.reason)


def _write_index(
    out: Path, files: ImageFiles, opened: OpenedPart, settings: PackSettings, shards: Sequence[_Shard]
) -> None:
    rows = [(number, *row) for number, shard in enumerate(shards) for row in shard.rows]
    if not rows:
        raise UserError(f"{files.root} holds no image that can be used: see `mlaan data check`")
    numbers, places, offsets, lengths, heights, widths, checksums = (
        np.array(column) for column in zip(*rows, strict=True)
    )
    left_out = [(bytes(files.names[place]), reason) for shard in shards for place, reason in shard.left_out]
    left_out += [(os.fsencode(path), kind) for path, kind in opened.left_out.items()]
    index = Index(
        np.array(VERSION),
        np.array(settings.form.encode()),
        np.array([os.fsencode(name) for name in opened.classes]),
        numbers.astype(np.int32),
        offsets.astype(np.int64),
        lengths.astype(np.int64),
        heights.astype(np.int32),
        widths.astype(np.int32),
        files.labels.numpy()[places],
        files.names[places],
        checksums.astype(np.uint32),
        np.array([shard.digest.encode() for shard in shards]),
        np.array([name for name, _ in left_out], dtype=np.bytes_),
        np.array([os.fsencode(reason) for _, reason in left_out], dtype=np.bytes_),
    )
    content = io.BytesIO()
    np.savez(content, **index._asdict())
    _write(out / INDEX, content.getvalue())


def _write(path: Path, content: bytes) -> None:
    with replacing(path) as file:
        file.write(content)
