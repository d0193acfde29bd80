"""The check of image folders: every file is decoded once, and a list of the good ones is kept beside them.

A file that cannot be used is named and left out of training and testing; an odd one, such as a grey picture, is named
and stays. The list is an .npz file without pickled objects, `.mlaan-check.npz` in the folder itself, or below
$XDG_CACHE_HOME/mlaan where that folder cannot be written. Training takes it as long as no class folder changes; another
check looks at the files that are new or have changed.
"""

import hashlib
import os
import shlex
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from mlaan.atomic import replacing
from mlaan.data.decoders import in_order
from mlaan.data.files import ImageFiles
from mlaan.data.findings import CRASHES, KINDS, LEFT_OUT, PASSING, Finding, inspect
from mlaan.data.listing import class_times, file_stamps, list_part
from mlaan.errors import UserError

_VERSION = 2
_SAVE_SECONDS = 60.0


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
        stamps: (N, 2) int64, `file_stamps` when they were looked at.
        place: where the list is kept.
    """

    folder: Path
    classes: list[str]
    times: dict[str, int]
    names: np.ndarray
    labels: np.ndarray
    kinds: np.ndarray
    sizes: np.ndarray
    stamps: np.ndarray
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
        UserError: as `list_part`, or all files are bad.
    """
    command = f"`mlaan data check {shlex.quote(root)}`"
    try:
        checked = read_list(folder)
    except ValueError as damage:
        checked, note = None, f"{folder}: the list of its check is ignored ({damage}); {command} makes it anew"
    else:
        note = f"{folder} has not been checked for bad files: {command} does it once" if checked is None else ""
    if checked is not None and class_times(folder) != checked.times:
        checked, note = None, f"{folder} has changed since it was checked: {command} looks at what is new"
    if checked is None:
        return OpenedPart(*list_part(folder, root), {}, note)
    bad = {KINDS.index(kind) for kind in LEFT_OUT}
    pairs = zip(checked.names, checked.kinds.tolist(), strict=True)
    left_out = {os.fsdecode(bytes(name)): KINDS[kind] for name, kind in pairs if kind in bad}
    if left_out:
        what = ", ".join(f"{count} {kind}" for kind, count in Counter(left_out.values()).items())
        note = f"{folder}: {len(left_out)} of {len(checked.names)} files left out ({what}): {command} names them"
    if len(left_out) == len(checked.names):
        raise UserError(f"{folder} holds no image that can be used: {command} names what is wrong with each")
    return OpenedPart(checked.files(), checked.classes, left_out, note)


def check_part(
    folder: Path,
    root: str,
    workers: int,
    progress: Callable[[int, int], None] = lambda done, count: None,
) -> CheckedPart:
    """Looks at every file of a part that was not looked at before, or has changed, and keeps the list.

    Interrupted, it keeps what it has found out.

    Args:
        workers: processes that decode.
        progress: called with the files done and all of them.

    Raises:
        UserError: as `list_part`, or the list cannot be kept anywhere.
    """
    times = class_times(folder)  # before the files are listed: one that comes meanwhile makes the list an old one
    files, classes = list_part(folder, root)
    stamps = file_stamps(files)
    known, place = _known(folder), _place(folder)
    count = len(files)
    findings = [known.get((bytes(name), *stamp)) for name, stamp in zip(files.names, stamps.tolist(), strict=True)]
    missing = [i for i, finding in enumerate(findings) if finding is None]

    def found() -> CheckedPart:
        return _looked_at(files, classes, times, stamps, findings, place)

    saved_at = time.monotonic()
    try:
        looking = in_order(inspect, Finding(CRASHES), (files.path(i) for i in missing), max(1, workers))
        for done, (i, finding) in enumerate(zip(missing, looking, strict=True), count - len(missing) + 1):
            findings[i] = finding
            progress(done, count)
            if time.monotonic() - saved_at > _SAVE_SECONDS:
                _save(found(), complete=False)
                saved_at = time.monotonic()
    except KeyboardInterrupt:
        _save(found(), complete=False)
        raise
    checked = found()
    _save(checked, complete=True)
    return checked


def read_list(folder: Path) -> CheckedPart | None:
    """The kept list of a part that was checked to its end; None where there is none.

    Raises:
        ValueError: there is one, but it is damaged or of another version.
    """
    found = _load(folder)
    return found[0] if found and found[1] else None


def _looked_at(
    files: ImageFiles,
    classes: list[str],
    times: dict[str, int],
    stamps: np.ndarray,
    findings: Sequence[Finding | None],
    place: Path,
) -> CheckedPart:
    """What is known so far."""
    keep = [i for i, finding in enumerate(findings) if finding is not None]
    known = [finding for finding in findings if finding is not None]
    return CheckedPart(
        files.root,
        classes,
        times,
        files.names[keep],
        files.labels.numpy()[keep],
        np.array([KINDS.index(finding.kind) for finding in known], dtype=np.uint8),
        np.array([finding[1:] for finding in known], dtype=np.int32).reshape(-1, 2),
        stamps[keep],
        place,
    )


def _known(folder: Path) -> dict[tuple[bytes, int, int], Finding]:
    """What an earlier check found, by name and stamp; what may pass is not among it."""
    try:
        found = _load(folder)
    except ValueError:
        return {}
    if found is None:
        return {}
    earlier = found[0]
    rows = zip(earlier.names, earlier.stamps.tolist(), earlier.kinds.tolist(), earlier.sizes.tolist(), strict=True)
    known = {(bytes(name), *stamp): Finding(KINDS[kind], *size) for name, stamp, kind, size in rows}
    return {key: finding for key, finding in known.items() if finding.kind not in PASSING}


def _places(folder: Path) -> list[Path]:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "mlaan"
    name = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:16]
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
        "stamps": part.stamps,
    }
    try:
        part.place.parent.mkdir(parents=True, exist_ok=True)
        with replacing(part.place) as file:
            np.savez_compressed(file, **content)
    except OSError as error:
        raise UserError(
            f"cannot keep the list of {part.folder} in {part.place}: {error.strerror or error}: make room, or get the "
            "right to write there"
        ) from None


def _load(folder: Path) -> tuple[CheckedPart, bool] | None:
    """The newest list, and whether it is of the whole part."""
    places = [place for place in _places(folder) if os.path.exists(place)]
    if not places:
        return None
    place = max(places, key=os.path.getmtime)
    try:
        with np.load(place, allow_pickle=False) as content:  # the zip archive's own checksums are looked at
            if int(content["version"]) == _VERSION:
                timed = [os.fsdecode(bytes(name)) for name in content["timed"]]
                part = CheckedPart(
                    folder,
                    [os.fsdecode(bytes(name)) for name in content["classes"]],
                    dict(zip(timed, content["times"].tolist(), strict=True)),
                    content["names"],
                    content["labels"],
                    content["kinds"],
                    content["sizes"],
                    content["stamps"],
                    place,
                )
                return part, bool(content["complete"])
    except Exception as error:  # zip, zlib and NumPy have many for a file that is not whole
        raise ValueError(f"{place} is damaged: {' '.join(str(error).split())}") from None
    raise ValueError(f"{place} is of another version")
