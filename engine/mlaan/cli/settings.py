"""The settings of the command line. Data sets and methods are known once their packages are imported."""

from pathlib import Path

import mlaan.data
import mlaan.learning.methods  # noqa: F401
from mlaan.config import Config, describe, load, loads


def load_config(file: str | Path | None, overrides: list[tuple[str, str]]) -> Config:
    """The defaults, changed by the file and then by the overrides; UserError where something does not fit."""
    return load(Config, Path(file) if file else None, overrides)


def load_kept(text: str, where: Path, overrides: list[tuple[str, str]]) -> Config:
    """The settings that are kept as TOML in `where`; one that is newer than the file has its default there."""
    return loads(Config, text, where, overrides)


def keys() -> list[str]:
    """Every dotted key there is."""
    return list(dict.fromkeys(setting.key for setting in describe(Config)))
