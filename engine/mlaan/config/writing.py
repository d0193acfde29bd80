"""From a dataclass tree to TOML text, and to the list of all its settings."""

import textwrap
from collections.abc import Iterator
from typing import Any, NamedTuple, TypeVar

from mlaan.config.toml import value_text
from mlaan.config.tree import UNSET, about, default_of, fields_of, is_family, is_section, join
from mlaan.config.values import Mismatch, any_of, choices, expected, from_toml, show
from mlaan.errors import UserError

T = TypeVar("T")
_WIDTH = 100


def dumps(config: Any) -> str:
    """Every setting of the tree as TOML, each below its help; `load` gives an equal tree back from it.

    Raises UserError for a value that its type refuses, such as inf or nan.
    """
    return "\n".join(_table(config, type(config), "")).lstrip("\n") + "\n"


def _table(section: Any, kind: type[Any], key: str) -> Iterator[str]:
    if key:
        yield ""
        yield from _comment(about(kind))
        yield f"[{key}]"
    if is_family(kind):
        yield from _comment(about(type(section)))
        yield f"name = {value_text(section.name)}"
    fields = fields_of(type(section))
    for name, info in fields.items():
        if not is_section(info.kind):
            yield from _comment(info.help)
            yield f"{name} = {value_text(_checked(info.kind, getattr(section, name), join(key, name)))}"
    for name, info in fields.items():
        if is_section(info.kind):
            yield from _table(getattr(section, name), info.kind, join(key, name))


def make(section: type[T], key: str, **values: Any) -> T:
    """A section out of Python values, held to the same types and choices as a file's; `key` is its name in messages.

    Raises UserError for a field the section does not have, and for a value that its type refuses.
    """
    fields = fields_of(section)
    for name, value in values.items():
        if name not in fields:
            raise UserError(f"{join(key, name)} is no setting: choose from {any_of(sorted(fields) or ['none'])}")
        _checked(fields[name].kind, value, join(key, name))
    return section(**values)


def _checked(kind: Any, value: Any, key: str) -> Any:
    try:
        return from_toml(kind, value)
    except Mismatch:
        raise UserError(f"{key} = {show(value)} must be {expected(kind, value)}") from None


def _comment(text: str) -> list[str]:
    return [f"# {line}" for line in textwrap.wrap(text, _WIDTH)]


class Setting(NamedTuple):
    """One setting as help texts show it."""

    key: str
    """Dotted, such as "data.batch"."""
    type: str
    """In words that end "must be …"."""
    default: Any
    """None where the setting must be given."""
    help: str
    choices: tuple[Any, ...]
    """The values a Literal or a family's `name` allows; empty where there is no such list."""
    member: str
    """The family's name this setting exists for, such as "digits"; empty for settings outside a family."""


def describe(config: type[Any]) -> list[Setting]:
    """Every setting of the tree in order; those of a family once for each member that has them."""
    return list(_settings(config, "", None, ""))


def _settings(kind: type[Any], key: str, start: Any, member: str) -> Iterator[Setting]:
    if is_family(kind):
        names = tuple(kind.choices)
        default = None if start is None else start.name
        yield Setting(join(key, "name"), any_of([show(name) for name in names]), default, about(kind), names, member)
        for name, option in kind.choices.items():
            yield from _fields(option, key, start if type(start) is option else None, name)
    else:
        yield from _fields(kind, key, start, member)


def _fields(section: type[Any], key: str, start: Any, member: str) -> Iterator[Setting]:
    for name, info in fields_of(section).items():
        default = default_of(info, start)
        default = None if default is UNSET else default
        if is_section(info.kind):
            yield from _settings(info.kind, join(key, name), default, member)
        else:
            yield Setting(join(key, name), expected(info.kind), default, info.help, choices(info.kind), member)
