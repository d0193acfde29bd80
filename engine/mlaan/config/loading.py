"""From TOML files and command-line overrides to one frozen dataclass tree."""

import difflib
import tomllib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TypeVar

from mlaan.config.choice import nearest_first
from mlaan.config.toml import BASE, read_chain
from mlaan.config.tree import UNSET, FieldInfo, default_of, fields_of, is_family, is_section, join
from mlaan.config.values import Mismatch, any_of, expected, from_text, from_toml, show
from mlaan.errors import UserError

C = TypeVar("C")

_ALIKE = 0.6
"""From this likeness on (difflib's own default) a known key is offered in place of an unknown one."""


def load(config: type[C], file: Path | None = None, overrides: Sequence[tuple[str, str]] = ()) -> C:
    """The tree `config` with its defaults, changed by the file (after its bases) and then by the overrides.

    An override is a dotted key and its text, ("data.batch", "128"); of several for one key the last counts.
    A later file or override that changes the `name` of a family starts that section anew: what was set for
    the member before it does not carry over. Raises UserError, one line that names the key, its value and the
    fix, for anything a person got wrong; what the dataclasses raise for their own rules passes through.
    """
    return _combine(config, read_chain(Path(file)) if file is not None else [], overrides)


def loads(config: type[C], text: str, where: Path, overrides: Sequence[tuple[str, str]] = ()) -> C:
    """As `load` of a file with this text, which has no base; messages say that it is in `where`."""
    try:
        tables = tomllib.loads(text)
    except ValueError as error:
        raise UserError(f"the settings in {where} are no valid TOML: {error}") from None
    return _combine(config, [(where, tables)], overrides)


def _combine(config: type[C], layers: Sequence[tuple[Path, dict[str, Any]]], overrides: Sequence[tuple[str, str]]) -> C:
    if BASE in fields_of(config):
        raise TypeError(f"{config.__name__} must not have a field called {BASE}: files use that key to inherit")
    root = _Section("", config, None, None)
    for path, tables in layers:
        root.apply(tables, _Source(f" in {path}", f" ({path})", from_toml, False))
    command_line = _Source(" on the command line", "", from_text, True)
    for key, text in sorted(dict(overrides).items(), key=_names_first):
        layer: Any = text
        for part in reversed(key.split(".")):
            layer = {part: layer}
        root.apply(layer, command_line)
    return root.build()


def _names_first(override: tuple[str, str]) -> tuple[bool, int]:
    """A name decides which keys its section has: it is read before them, outer before inner ones."""
    key = override[0]
    return key.split(".")[-1] != "name", key.count(".")


class _Source(NamedTuple):
    """Where a layer of settings comes from, in words, and how its values are read."""

    where: str
    note: str
    read: Callable[[Any, Any], Any]
    is_text: bool


class _Section:
    """One table while it is put together: the class it will be, what was set, the sections below it."""

    def __init__(self, key: str, kind: type[Any], start: Any, root: "_Section | None") -> None:
        self.key = key
        self.family = kind if is_family(kind) else None
        self.default = start
        self.root = root or self
        if start is not None:
            self._become(type(start), start)
        else:
            self._become(None if self.family else kind, None)

    def _become(self, member: type[Any] | None, start: Any) -> None:
        self.member = member
        self.start = start
        self.values: dict[str, Any] = {}
        self.parts: dict[str, _Section] = {}
        for name, info in self._fields().items():
            if is_section(info.kind):
                default = default_of(info, start)
                below = None if default is UNSET else default
                self.parts[name] = _Section(join(self.key, name), info.kind, below, self.root)

    def _fields(self) -> dict[str, FieldInfo]:
        return fields_of(self.member) if self.member else {}

    def apply(self, table: dict[str, Any], source: _Source) -> None:
        """Set what `table` says; raises UserError at the first key or value that does not fit."""
        if self.family is not None:
            table = dict(table)
            self._choose(table.pop("name", None), source)
        for name, value in table.items():
            self._set(name, value, source)

    def _choose(self, name: Any, source: _Source) -> None:
        assert self.family is not None
        if name is None:
            if self.member is None:
                raise UserError(self._needs_name())
            return
        if not isinstance(name, str) or name not in self.family.choices:
            known = any_of([*map(repr, nearest_first(str(name), list(self.family.choices)))])
            raise UserError(f"{self.key}.name = {show(name)} must be {known}{source.note}")
        member = self.family.choices[name]
        if member is not self.member:
            self._become(member, self.default if type(self.default) is member else None)

    def _set(self, name: str, value: Any, source: _Source) -> None:
        key = join(self.key, name)
        info = self._fields().get(name)
        if info is None:
            self._refuse(name, value, source)
        if name in self.parts:
            if not isinstance(value, dict):
                fix = self.parts[name].example()
                raise UserError(f"{key} = {show(value)}{source.where} must be a section: set its keys, such as {fix}")
            self.parts[name].apply(value, source)
            return
        if isinstance(value, dict) and value:
            self._refuse(name, value, source)
        try:
            self.values[name] = source.read(info.kind, value)
        except Mismatch:
            raise UserError(f"{key} = {show(value)} must be {expected(info.kind, value)}{source.note}") from None

    def build(self) -> Any:
        """The finished dataclass; raises UserError for a setting without a default that nobody set."""
        if self.member is None:
            raise UserError(self._needs_name())
        arguments = {}
        for name, info in fields_of(self.member).items():
            if name in self.parts:
                arguments[name] = self.parts[name].build()
                continue
            arguments[name] = self.values[name] if name in self.values else default_of(info, self.start)
            if arguments[name] is UNSET:
                raise UserError(
                    f"{join(self.key, name)} is not set and has no default: it must be {expected(info.kind)}"
                )
        return self.member(**arguments)

    def keys(self) -> Iterator[str]:
        """Every dotted key that can be set from here down, with the members chosen so far."""
        if self.family is not None:
            yield join(self.key, "name")
        for name in self._fields():
            if name in self.parts:
                yield from self.parts[name].keys()
            else:
                yield join(self.key, name)

    def example(self) -> str:
        return next(self.keys(), f"those of {self.key}")

    def sections(self) -> Iterator[str]:
        for part in self.parts.values():
            yield part.key
            yield from part.sections()

    def _needs_name(self) -> str:
        assert self.family is not None
        names = any_of([*map(repr, self.family.choices)])
        return f"{self.key}.name is not set and has no default: it must be {names}"

    def _refuse(self, name: str, value: Any, source: _Source) -> NoReturn:
        key = join(self.key, name)
        is_known = name in self._fields()
        if self.family is not None and self.member is not None and not is_known:
            owners = [other for other, member in self.family.choices.items() if name in fields_of(member)]
            if owners:
                those = any_of([*map(repr, owners)])
                raise UserError(
                    f"{key} belongs to {self.key}.name = {those}, not {self.member.name!r}: "
                    f"remove it or change {self.key}.name{source.note}"
                )
        what = "section" if isinstance(value, dict) and not (source.is_text or is_known) else "key"
        while isinstance(value, dict) and value and what == "key":
            inner, value = next(iter(value.items()))
            key = join(key, inner)
        known = list(self.root.sections() if what == "section" else self.root.keys())
        close = _nearest(key, known)
        here = [other for other in known if self.key and other.startswith(f"{self.key}.")]
        here = here or list(self.root.parts) or known
        hint = f"did you mean {any_of([*map(repr, close)])}?" if close else f"known here: {', '.join(here)}"
        raise UserError(f"unknown {what} {key!r}{source.where}: {hint}")


def _nearest(key: str, known: list[str]) -> list[str]:
    """The known keys likely meant: an ancestor, else the most alike, else all of that last part."""
    if ancestors := [other for other in known if key.startswith(f"{other}.")]:
        return ancestors
    alike = {other: _likeness(key, other) for other in known}
    best = max(alike, key=lambda other: alike[other], default="")
    if best and alike[best] >= _ALIKE:
        return [best]
    return [other for other in known if other.split(".")[-1] == key.split(".")[-1]]


def _likeness(one: str, other: str) -> float:
    """0 to 1: how alike two dotted keys are in their section and in their last part, whichever is less."""
    parts = zip(one.rpartition("."), other.rpartition("."), strict=True)
    return min(difflib.SequenceMatcher(None, mine, theirs).ratio() for mine, theirs in parts)
