"""The rows of a table: config files, each with its figure in the literature."""

import shlex
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path

from mlaan.config import Config
from mlaan.errors import UserError
from mlaan.run_folder import RunFolder

PUBLISHED = "published.toml"
"""File of published figures: it serves the configs in its own folder and in those below."""


@dataclass(frozen=True)
class Published:
    """What the literature says about one row.

    Attributes:
        error: top-1 error in percent; None where there is no figure to quote.
        source: who published it, in words.
        secondary: `source` is not the method's own authors.
        memory_gb: peak memory of training in GB, where it is given.
    """

    error: float | None = None
    source: str = ""
    secondary: bool = False
    memory_gb: float | None = None


@dataclass(frozen=True)
class Row:
    """One config file.

    Attributes:
        label: the file's path below the folder of its published figures; its name where there are none.
        config: the resolved settings, but for train.seed and run.folder.
    """

    file: Path
    label: str
    config: Config
    published: Published


def expand(files: Iterable[str | Path]) -> list[Path]:
    """The config files meant: a folder means the TOML files right in it, by name.

    Raises:
        UserError: a folder without any, a run's folder, or two files of one name: their runs would share a folder.
    """
    found: dict[Path, None] = {}
    for file in map(Path, files):
        folder = RunFolder(file)
        if folder.holds_run() and folder.metrics.exists():
            raise UserError(f"{file} is a run folder: its results: `mlaan report {shlex.quote(str(file))}`")
        inside = [path for path in sorted(file.glob("*.toml")) if path.name != PUBLISHED] if file.is_dir() else [file]
        if not inside:
            below = sorted(path.name for path in file.iterdir() if path.is_dir())
            fix = f"name one of its folders: {', '.join(below)}" if below else "name a folder with TOML files"
            raise UserError(f"{file} holds no config: {fix}")
        found |= dict.fromkeys(inside)
    by_stem: dict[str, Path] = {}
    for path in found:
        other = by_stem.setdefault(path.stem, path)
        if other != path:
            raise UserError(
                f"{other} and {path} have one name, so their runs would share a folder: "
                "give them to two calls, each with a --folder"
            )
    return list(found)


def published_for(file: Path) -> tuple[str, Published]:
    """A config's label and its published figure, from the nearest published.toml above it.

    Raises:
        UserError: that file is no valid TOML or has a row that does not fit.
    """
    file = file.absolute()
    for folder in file.parents:
        if (folder / PUBLISHED).is_file():
            label = file.relative_to(folder).with_suffix("").as_posix()
            return label, read_published(folder / PUBLISHED).get(label, Published())
    return file.stem, Published()


def read_published(path: Path) -> dict[str, Published]:
    """All rows of a file of published figures, by label. `source` there is a key of its table [sources].

    Raises:
        UserError: no valid TOML, or a row that does not fit.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not valid TOML: {error}") from None
    rows = {}
    for label, values in content["rows"].items():
        try:
            source = content["sources"][values["source"]] if "source" in values else ""
            rows[label] = Published(**{**values, "source": source})
        except (KeyError, TypeError) as error:
            known = f"its keys are {', '.join(each.name for each in fields(Published))}; sources stand in [sources]"
            raise UserError(f"{path}, row {label!r}: {error}: {known}") from None
    return rows
