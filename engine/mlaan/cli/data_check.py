"""`mlaan data check`: looks at every file of a folder of images, once."""

import argparse
import json
import os
import sys
import time
from pathlib import Path

from mlaan.cli.arguments import Overrides
from mlaan.data.check import LEFT_OUT, ODD, CheckedPart, check_part
from mlaan.errors import UserError
from mlaan.observe.words import aligned, duration

_NAMED = 50
"""Bad files of a kind that are named; the rest are counted, and --json names all."""


def run(arguments: argparse.Namespace, overrides: Overrides) -> int:
    """Checks train/ and val/ of the folder, or the folder itself where it holds class folders."""
    root = Path(arguments.folder).expanduser()
    parts = [root / name for name in ("train", "val") if (root / name).is_dir()] or [root]
    if not root.is_dir():
        raise UserError(f"{root} is no folder: name the one that holds train and val")
    workers = arguments.workers or min(32, os.cpu_count() or 1)
    checked = [check_part(part, str(root), workers, Progress(str(part))) for part in parts]
    if arguments.json:
        print(json.dumps([_plain(part) for part in checked], indent=1))
        return 0
    kinds = [kind for kind in (*LEFT_OUT, *ODD) if any(kind in part.counts() for part in checked)]
    rows = [["", "files", "used", *kinds]]
    for part in checked:
        counts = part.counts()
        used = len(part.names) - sum(counts.get(kind, 0) for kind in LEFT_OUT)
        rows.append([part.folder.name, *map(str, (len(part.names), used, *(counts.get(kind, 0) for kind in kinds)))])
    print("\n".join(aligned(rows)))
    for part in checked:
        for kind in LEFT_OUT:
            paths = part.paths(kind)
            print("".join(f"left out, {kind}: {path}\n" for path in paths[:_NAMED]), end="")
            if len(paths) > _NAMED:
                print(f"left out, {kind}: {len(paths) - _NAMED} more; --json names them all")
        for kind in ODD:
            paths = part.paths(kind)
            print("".join(f"used, {kind}: {path}\n" for path in paths[:5]), end="")
            if len(paths) > 5:
                print(f"used, {kind}: {len(paths) - 5} more; --json names them all")
        print(f"list of {part.folder.name}: {part.place}")
    return 0


class Progress:
    """A line on the terminal that counts files; nothing where nobody looks."""

    def __init__(self, what: str) -> None:
        self._what, self._start, self._shown = what, time.monotonic(), 0.0
        self._first: int | None = None

    def __call__(self, done: int, count: int) -> None:
        now = time.monotonic()
        self._first = done if self._first is None else self._first
        if not sys.stderr.isatty() or (now - self._shown < 0.2 and done < count):
            return
        self._shown = now
        rate = (done - self._first) / max(now - self._start, 1e-9)
        left = duration((count - done) / rate) if rate else "?"
        end = "\n" if done == count else ""
        line = f"\r{self._what}: {done:,} of {count:,}, {rate:,.0f} a second, {left} left "
        print(line, end=end, file=sys.stderr, flush=True)


def _plain(part: CheckedPart) -> dict[str, object]:
    return {
        "folder": str(part.folder),
        "files": len(part.names),
        "list": str(part.place),
        "left_out": {kind: part.paths(kind) for kind in LEFT_OUT if kind in part.counts()},
        "odd": {kind: part.paths(kind) for kind in ODD if kind in part.counts()},
    }
