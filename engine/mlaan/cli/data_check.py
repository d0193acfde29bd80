"""`mlaan data check`: looks at every file of a folder of images, once."""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from mlaan.cli.arguments import Overrides
from mlaan.data.backends import holds_packed, require_same_classes
from mlaan.data.check import CheckedPart, check_part
from mlaan.data.findings import LEFT_OUT, ODD
from mlaan.errors import UserError
from mlaan.observe.words import aligned, duration

NAMED = 50
"""Bad files of a kind that are named; the rest are counted, and --json names all."""
_ODD_NAMED = 5
_SECONDS = 30.0


def run(arguments: argparse.Namespace, overrides: Overrides) -> int:
    """Checks train/ and val/ of the folder, or the folder itself where it holds class folders."""
    root = Path(arguments.folder).expanduser()
    parts = [root / name for name in ("train", "val") if (root / name).is_dir()] or [root]
    if not root.is_dir():
        raise UserError(f"{root} is no folder: name the one that holds train and val")
    if holds_packed(root):
        raise UserError(f"{root} holds packed images or tar files, which need no check: train with --data.root {root}")
    workers = arguments.workers or min(32, os.cpu_count() or 1)
    checked = [check_part(part, str(root), workers, Progress(str(part))) for part in parts]
    if arguments.json:
        print(json.dumps([_plain(part) for part in checked], indent=1))
        return 0
    lines = [*_table(checked), *(line for part in checked for line in _named(part))]
    if parts != [root] and len(parts) == 1:
        lines.append(f"{root} holds {parts[0].name} alone: training needs both train and val")
    if len(checked) == 2:
        try:
            require_same_classes([part.classes for part in checked], str(root))
        except UserError as error:
            lines.append(str(error))
    print(_encodable("\n".join(lines)))
    return 0


def _table(checked: Sequence[CheckedPart]) -> list[str]:
    kinds = [kind for kind in (*LEFT_OUT, *ODD) if any(kind in part.counts() for part in checked)]
    rows = [["", "files", "used", *kinds]]
    for part in checked:
        counts = part.counts()
        used = len(part.names) - sum(counts.get(kind, 0) for kind in LEFT_OUT)
        rows.append([_name(part), *map(str, (len(part.names), used, *(counts.get(kind, 0) for kind in kinds)))])
    return aligned(rows)


def _named(part: CheckedPart) -> Iterator[str]:
    """The first files of each kind, and where the list is."""
    for kinds, what, most in ((LEFT_OUT, "left out", NAMED), (ODD, "used", _ODD_NAMED)):
        for kind in kinds:
            paths = part.paths(kind)
            yield from (f"{what}, {kind}: {path}" for path in paths[:most])
            if len(paths) > most:
                yield f"{what}, {kind}: {len(paths) - most} more; --json names them all"
    yield f"list of {_name(part)}: {part.place}"


def _name(part: CheckedPart) -> str:
    return part.folder.resolve().name


def _encodable(text: str) -> str:
    r"""A file name may hold bytes that are no text: they are shown as \xe9."""
    return os.fsencode(text).decode(errors="backslashreplace")


class Progress:
    """A line on the terminal that counts files; where it is no terminal, one every half a minute."""

    def __init__(self, what: str) -> None:
        self._what, self._start = what, time.monotonic()
        self._is_terminal = sys.stderr.isatty()
        self._shown = 0.0 if self._is_terminal else self._start
        self._first: int | None = None

    def __call__(self, done: int, count: int) -> None:
        now = time.monotonic()
        self._first = done if self._first is None else self._first
        if now - self._shown < (0.2 if self._is_terminal else _SECONDS) and not (self._is_terminal and done == count):
            return
        self._shown = now
        rate = (done - self._first) / max(now - self._start, 1e-9)
        left = duration((count - done) / rate) if rate else "?"
        line = f"{self._what}: {done:,} of {count:,}, {rate:,.0f} a second, {left} left"
        line, end = (f"\r{line}\x1b[K", "\n" if done == count else "") if self._is_terminal else (line, "\n")
        print(line, end=end, file=sys.stderr, flush=True)


def _plain(part: CheckedPart) -> dict[str, object]:
    return {
        "folder": str(part.folder),
        "files": len(part.names),
        "list": str(part.place),
        "left_out": {kind: part.paths(kind) for kind in LEFT_OUT if kind in part.counts()},
        "odd": {kind: part.paths(kind) for kind in ODD if kind in part.counts()},
    }
