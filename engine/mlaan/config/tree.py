"""What a tree of settings is made of: sections (dataclasses), families of sections, and their fields."""

import dataclasses
from functools import cache
from typing import Any, NamedTuple, get_type_hints

from mlaan.config.choice import Choice


class FieldInfo(NamedTuple):
    """One field of a section: its resolved type, its one line of help, and the dataclass field itself."""

    kind: Any
    help: str
    field: "dataclasses.Field[Any]"


UNSET = dataclasses.MISSING
"""Stands for the default of a field that has none."""


@cache
def fields_of(section: type[Any]) -> dict[str, FieldInfo]:
    """The fields of a dataclass in order, without those that its constructor does not take."""
    kinds = get_type_hints(section)
    return {
        field.name: FieldInfo(kinds[field.name], " ".join(field.metadata.get("help", "").split()), field)
        for field in dataclasses.fields(section)
        if field.init
    }


def is_family(kind: Any) -> bool:
    """True for a direct subclass of Choice."""
    return isinstance(kind, type) and Choice in kind.__bases__


def is_section(kind: Any) -> bool:
    """True for a type that is a table in TOML: a dataclass or a family."""
    return is_family(kind) or (isinstance(kind, type) and dataclasses.is_dataclass(kind))


def default_of(info: FieldInfo, parent: Any = None) -> Any:
    """The value a field has when nobody sets it: that of `parent` if given, else its own, else UNSET."""
    field = info.field
    if parent is not None:
        return getattr(parent, field.name)
    return field.default_factory() if field.default_factory is not UNSET else field.default


def about(section: type[Any]) -> str:
    """First line of the docstring a person wrote for the class; empty where there is none."""
    text = (section.__doc__ or "").strip()
    return "" if text.startswith(f"{section.__name__}(") else text.partition("\n")[0]


def join(prefix: str, name: str) -> str:
    """The dotted key of `name` below `prefix`."""
    return f"{prefix}.{name}" if prefix else name
