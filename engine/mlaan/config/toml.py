"""TOML files with inheritance: reading a chain of them, and writing single values."""

import difflib
import os
import tomllib
from pathlib import Path
from typing import Any

from mlaan.config.values import show
from mlaan.errors import UserError

BASE = "base"
"""Top-level key that names the file to start from, relative to the file it stands in."""

_ESCAPES = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\t": "\\t", "\r": "\\r"}


def read_chain(file: Path) -> list[tuple[Path, dict[str, Any]]]:
    """The file and the ones it builds on, the outermost base first, each with its tables and without `base`.

    Raises UserError for a file that is missing, unreadable or broken, and for bases that form a cycle.
    """
    chain: list[tuple[Path, dict[str, Any]]] = []
    seen: list[str] = []
    asked_by = ""
    while True:
        if os.path.realpath(file) in seen:
            loop = " -> ".join(str(path) for path in [*(path for path, _ in chain), file])
            raise UserError(f"{asked_by}the chain of base files never ends: {loop}")
        seen.append(os.path.realpath(file))
        tables = _read(file, asked_by)
        base = tables.pop(BASE, None)
        chain.append((file, tables))
        if base is None:
            return chain[::-1]
        if not isinstance(base, str) or "\0" in base:
            raise UserError(f"base = {show(base)} in {file} must be the path of a TOML file, in quotes")
        asked_by = f"base = {show(base)} in {file}: "
        file = file.parent / base


def _read(file: Path, asked_by: str) -> dict[str, Any]:
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{asked_by}no file {file}{_similar(file)}") from None
    except IsADirectoryError:
        raise UserError(f"{asked_by}{file} is a folder, not a TOML file") from None
    except OSError as error:
        raise UserError(f"{asked_by}cannot read {file}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 text: byte {error.start} is 0x{error.object[error.start]:02x}") from None
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is not valid TOML: {error}") from None


def _similar(file: Path) -> str:
    siblings = {path.stem: path for path in sorted(file.parent.glob("*.toml"))}
    close = difflib.get_close_matches(file.stem, siblings, n=1)
    return f": did you mean {siblings[close[0]]}?" if close else ""


def value_text(value: Any) -> str:
    """A bool, int, float, str or tuple of those as TOML; floats read back to the same bits.

    Raises UserError for text that no TOML file can hold (a lone surrogate).
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return f"[{', '.join(map(value_text, value))}]"
    return _quoted(value) if isinstance(value, str) else repr(value)


def _quoted(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(f"{text!a} holds half a character and cannot be written as TOML") from None
    return '"' + "".join(map(_escaped, text)) + '"'


def _escaped(letter: str) -> str:
    if letter < " " or letter == "\x7f":
        return _ESCAPES.get(letter, f"\\u{ord(letter):04x}")
    return _ESCAPES.get(letter, letter)
