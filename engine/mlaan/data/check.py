"""The check of image folders: every file is decoded once, and a list of the good ones is kept beside them.

A file that cannot be used is named and left out of training and testing; an odd one, such as a grey picture, is named
and stays. The list is an .npz file without pickled objects, `.mlaan-check.npz` in the folder itself, or below
$XDG_CACHE_HOME/mlaan where that folder cannot be written. It holds as long as no class folder changes.
"""

import hashlib
import os
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from mlaan.data.files import ImageFiles, decode
from mlaan.data.listing import class_times, list_part
from mlaan.data.store import Unreadable
from mlaan.errors import UserError

GOOD = "good"
LEFT_OUT = ("empty", "truncated", "no image", "tiny", "crashes the decoder")
ODD = ("grey", "CMYK", "not JPEG", "turned by EXIF")
KINDS = (GOOD, *LEFT_OUT, *ODD)
"""What a file may be; `LEFT_OUT` are of no use, `ODD` are used: as RGB, and not turned."""

LEAST_SIDE = 4
"""Pixels; an image with a shorter side is "tiny"."""

_VERSION = 1
_CHUNK = 32
_SAVE_SECONDS = 60.0
_MAGIC = (b"\xff\xd8", b"\x89PNG", b"RIFF", b"GIF8")


class Finding(NamedTuple):
    """What a file is: one of KINDS, its height and width (0 where unknown)."""

    kind: str
    height: int = 0
    width: int = 0


@dataclass(frozen=True, eq=False)
class CheckedPart:
    """All files of one part, with what was found.

    Attributes:
        folder: the part's.
        classes: names of its class folders.
        times: {class: `class_times`} when they were looked at.
        names: (N,) bytes, paths below `folder`.
        labels: (N,) int64.
        kinds: (N,) uint8, places in KINDS.
        sizes: (N, 2) int32, heights and widths.
        place: where the list is kept.
    """

    folder: Path
    classes: list[str]
    times: dict[str, int]
    names: np.ndarray
    labels: np.ndarray
    kinds: np.ndarray
    sizes: np.ndarray
    place: Path

    def counts(self) -> dict[str, int]:
        """How many files there are of each kind, in KINDS' order; kinds without a file are left away."""
        found = Counter(self.kinds.tolist())
        return {kind: found[i] for i, kind in enumerate(KINDS) if found[i]}

    def paths(self, kind: str) -> list[str]:
        """The files of one kind."""
        chosen = self.names[self.kinds == KINDS.index(kind)]
        return [os.path.join(self.folder, os.fsdecode(name)) for name in chosen]

    def files(self) -> ImageFiles:
        """Those that can be used, with their sizes."""
        usable = ~np.isin(self.kinds, [KINDS.index(kind) for kind in LEFT_OUT])
        labels = torch.from_numpy(self.labels[usable])
        return ImageFiles(self.folder, self.names[usable], labels, self.sizes[usable])


class OpenedPart(NamedTuple):
    """One part of a folder, as training uses it.

    Attributes:
        files: of a checked folder only those that can be used, with their sizes.
        classes: names of the class folders.
        left_out: {path below the folder: kind} of the others.
        note: a line for the person who trains; "" where there is nothing to say.
    """

    files: ImageFiles
    classes: list[str]
    left_out: dict[str, str]
    note: str


def open_part(folder: Path, root: str) -> OpenedPart:
    """The files of a part, without the bad ones where it was checked; reads no image.

    Raises:
        UserError: as `list_part`.
    """
    command = f"`mlaan data check {root}`"
    try:
        checked = read_list(folder)
    except ValueError as damage:
        checked, note = None, f"{folder}: the list of its check is ignored ({damage}); {command} makes it anew"
    else:
        note = f"{folder} has not been checked for bad files: {command} does it once" if checked is None else ""
    if checked is not None:
        present = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
        if class_times(folder, present) != checked.times:
            checked, note = None, f"{folder} has changed since it was checked: {command} looks at what is new"
    if checked is None:
        return OpenedPart(*list_part(folder, root), {}, note)
    bad = {KINDS.index(kind) for kind in LEFT_OUT}
    pairs = zip(checked.names, checked.kinds.tolist(), strict=True)
    left_out = {os.fsdecode(bytes(name)): KINDS[kind] for name, kind in pairs if kind in bad}
    if left_out:
        what = ", ".join(f"{count} {kind}" for kind, count in Counter(left_out.values()).items())
        note = f"{folder}: {len(left_out)} of {len(checked.names)} files left out ({what}): {command} names them"
    return OpenedPart(checked.files(), checked.classes, left_out, note)


def check_part(
    folder: Path,
    root: str,
    workers: int,
    progress: Callable[[int, int], None] = lambda done, count: None,
) -> CheckedPart:
    """Looks at every file of a part that was not looked at before, and keeps the list.

    Interrupted, it keeps what it has found out about whole class folders.

    Args:
        workers: processes that decode.
        progress: called with the files done and all of them.

    Raises:
        UserError: as `list_part`, or the list cannot be kept anywhere.
    """
    files, classes = list_part(folder, root)
    times = class_times(folder, classes)
    known = _known(folder, times)
    count = len(files)
    findings: list[Finding | None] = [known.get(bytes(name)) for name in files.names]
    missing = [i for i, finding in enumerate(findings) if finding is None]
    place = _place(folder)
    saved_at = time.monotonic()
    try:
        done = count - len(missing)
        for i, finding in _inspect_all([files.path(i) for i in missing], workers):
            findings[missing[i]] = finding
            done += 1
            progress(done, count)
            if time.monotonic() - saved_at > _SAVE_SECONDS:
                _save(_partial(files, classes, times, findings, place), complete=False)
                saved_at = time.monotonic()
    except KeyboardInterrupt:
        _save(_partial(files, classes, times, findings, place), complete=False)
        raise
    checked = _partial(files, classes, times, findings, place)
    _save(checked, complete=True)
    return checked


def read_list(folder: Path) -> CheckedPart | None:
    """The kept list of a part that was checked to its end; None where there is none.

    Raises:
        ValueError: there is one, but it is damaged or of another version.
    """
    found = _load(folder)
    return found[0] if found and found[1] else None


def inspect(path: str) -> Finding:
    """What a file is; decodes all of it."""
    try:
        with open(path, "rb") as file:
            start = file.read(4)
    except OSError:
        return Finding("no image")
    if not start:
        return Finding("empty")
    try:
        image = decode(path)
    except Unreadable:
        return Finding("truncated" if start.startswith(_MAGIC) else "no image")
    _, height, width = image.shape
    if min(height, width) < LEAST_SIDE:
        return Finding("tiny", height, width)
    return Finding(_oddity(path), height, width)


def _oddity(path: str) -> str:
    from PIL import Image

    try:
        with Image.open(path) as image:
            if image.format != "JPEG":
                return "not JPEG"
            if image.mode != "RGB":
                return {"L": "grey", "CMYK": "CMYK"}.get(image.mode, GOOD)
            return "turned by EXIF" if image.getexif().get(0x0112, 1) != 1 else GOOD
    except (OSError, ValueError, SyntaxError):  # torchvision decodes it, and that is what counts
        return GOOD


def _inspect_chunk(paths: Sequence[str]) -> list[Finding]:
    torch.set_num_threads(1)
    return [inspect(path) for path in paths]


def _inspect_all(paths: Sequence[str], workers: int) -> Iterator[tuple[int, Finding]]:
    """(place, finding) of all files, in any order."""
    chunks = [range(first, min(first + _CHUNK, len(paths))) for first in range(0, len(paths), _CHUNK)]
    left: list[range] = []
    with ProcessPoolExecutor(max(1, workers), mp_context=get_context("fork")) as pool:
        running: dict[Future[list[Finding]], range] = {}
        waiting = iter(chunks)
        try:
            while True:
                for chunk in waiting:
                    running[pool.submit(_inspect_chunk, [paths[i] for i in chunk])] = chunk
                    if len(running) >= 4 * max(1, workers):
                        break
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    yield from zip(running[future], future.result(), strict=True)
                    del running[future]
        except BrokenProcessPool:  # some file crashed its process; the others' results are lost
            left = [*running.values(), *waiting]
        except (KeyboardInterrupt, GeneratorExit):
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    for chunk in left:
        yield from _inspect_alone(paths, chunk)


def _inspect_alone(paths: Sequence[str], chunk: range) -> Iterator[tuple[int, Finding]]:
    """A chunk in a process of its own; where that dies, in halves, down to the file that it dies of."""
    with ProcessPoolExecutor(1, mp_context=get_context("fork")) as pool:
        try:
            found = pool.submit(_inspect_chunk, [paths[i] for i in chunk]).result()
        except BrokenProcessPool:
            found = None
    if found is not None:
        yield from zip(chunk, found, strict=True)
    elif len(chunk) == 1:
        yield chunk[0], Finding("crashes the decoder")
    else:
        middle = len(chunk) // 2
        yield from _inspect_alone(paths, chunk[:middle])
        yield from _inspect_alone(paths, chunk[middle:])


def _partial(
    files: ImageFiles, classes: list[str], times: dict[str, int], findings: Sequence[Finding | None], place: Path
) -> CheckedPart:
    """What is known, of class folders that were looked at to the end."""
    open_ones = {int(files.labels[i]) for i, finding in enumerate(findings) if finding is None}
    keep = [i for i in range(len(files)) if int(files.labels[i]) not in open_ones]
    known = [finding for i in keep if (finding := findings[i]) is not None]
    return CheckedPart(
        files.root,
        classes,
        {name: times[name] for label, name in enumerate(classes) if label not in open_ones},
        files.names[keep],
        files.labels.numpy()[keep],
        np.array([KINDS.index(finding.kind) for finding in known], dtype=np.uint8),
        np.array([finding[1:] for finding in known], dtype=np.int32).reshape(-1, 2),
        place,
    )


def _known(folder: Path, times: dict[str, int]) -> dict[bytes, Finding]:
    """What an earlier check found in class folders that have not changed since."""
    try:
        found = _load(folder)
    except ValueError:
        return {}
    if found is None:
        return {}
    earlier = found[0]
    same = {name for name, moment in earlier.times.items() if times.get(name) == moment}
    is_same = np.array([name in same for name in earlier.classes], dtype=bool)
    keep = is_same[earlier.labels] if len(earlier.labels) else np.zeros(0, dtype=bool)
    rows = zip(earlier.names[keep], earlier.kinds[keep], earlier.sizes[keep].tolist(), strict=True)
    return {bytes(name): Finding(KINDS[kind], *size) for name, kind, size in rows}


def _places(folder: Path) -> list[Path]:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "mlaan"
    name = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
    return [folder / ".mlaan-check.npz", cache / f"check-{name}.npz"]


def _place(folder: Path) -> Path:
    beside, cached = _places(folder)
    return beside if os.access(folder, os.W_OK) else cached


def _save(part: CheckedPart, *, complete: bool) -> None:
    content = {
        "version": np.array(_VERSION),
        "complete": np.array(complete),
        "classes": np.array([os.fsencode(name) for name in part.classes]),
        "timed": np.array([os.fsencode(name) for name in part.times]),
        "times": np.array(list(part.times.values()), dtype=np.int64),
        "names": part.names,
        "labels": part.labels,
        "kinds": part.kinds,
        "sizes": part.sizes,
    }
    temporary = part.place.with_name(f".{part.place.name}.{os.getpid()}.tmp")
    try:
        part.place.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            np.savez_compressed(file, **content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(part.place)
    except OSError as error:
        raise UserError(f"cannot keep the list of {part.folder} in {part.place}: {error.strerror}: make room") from None
    finally:
        temporary.unlink(missing_ok=True)


def _load(folder: Path) -> tuple[CheckedPart, bool] | None:
    """The list and whether it is of the whole part."""
    place = next((place for place in _places(folder) if place.exists()), None)
    if place is None:
        return None
    try:
        with np.load(place, allow_pickle=False) as content:  # the zip archive's own checksums are looked at
            if int(content["version"]) != _VERSION:
                raise ValueError(f"{place} is of another version")
            timed = [os.fsdecode(bytes(name)) for name in content["timed"]]
            part = CheckedPart(
                folder,
                [os.fsdecode(bytes(name)) for name in content["classes"]],
                dict(zip(timed, content["times"].tolist(), strict=True)),
                content["names"],
                content["labels"],
                content["kinds"],
                content["sizes"],
                place,
            )
            return part, bool(content["complete"])
    except (OSError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{place} is damaged: {' '.join(str(error).split())}") from None
