"""The types a setting may have: checking TOML values, reading command-line text, wording.

A type is bool, int, float, str, a Literal of those, a tuple[scalar, ...], or a union of them.
"""

import math
import re
import types
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, Union, get_args, get_origin

from mlaan.config.choice import nearest_first

_INTEGER = re.compile(r"[+-]?[0-9]+(_[0-9]+)*")
_SCALARS = {
    bool: ("true or false", "true or false"),
    int: ("an integer", "integers"),
    float: ("a finite number", "finite numbers"),
    str: ("a text", "texts"),
}
_SHOWN = 60


class Mismatch(Exception):
    """A value that its type refuses; the caller knows the key and says so to the user."""


def from_toml(kind: Any, value: Any) -> Any:
    """`value`, as tomllib gives it, in the type `kind`; an int is taken for a float, a list for a tuple.

    Raises Mismatch for every other difference, inf and nan too, and TypeError for a `kind` not listed above.
    """
    if options := _options(kind):
        return _first_fit(options, lambda option: from_toml(option, value))
    if get_origin(kind) is Literal:
        return _first_fit(get_args(kind), lambda option: _exactly(option, value))
    if get_origin(kind) is tuple:
        if not isinstance(value, list | tuple):
            raise Mismatch
        return tuple(from_toml(_item(kind), item) for item in value)
    if kind not in _SCALARS:
        raise TypeError(f"a setting cannot have the type {kind!r}")
    if kind is float and type(value) is int:
        return _finite(value)
    if type(value) is not kind:
        raise Mismatch
    return _finite(value) if kind is float else value


def from_text(kind: Any, text: str) -> Any:
    """`text` from the command line in the type `kind`; of a union, plain text is tried last.

    A tuple is written 0,3,5 or [0,3,5], an empty one []. Raises Mismatch and TypeError as `from_toml` does.
    """
    if options := _options(kind):
        return _first_fit(sorted(options, key=lambda option: option is str), lambda option: from_text(option, text))
    if get_origin(kind) is Literal:
        return _first_fit(get_args(kind), lambda option: _exactly(option, from_text(type(option), text)))
    if get_origin(kind) is tuple:
        inner = text.strip()
        if inner.startswith("[") and inner.endswith("]"):
            inner = inner[1:-1].strip().removesuffix(",")
            if not inner:
                return ()
        return tuple(from_text(_item(kind), part.strip()) for part in inner.split(","))
    if kind is str:
        return text
    return from_toml(kind, _scalar(kind, text.strip()))


def expected(kind: Any, value: Any = None) -> str:
    """What a value of type `kind` must be, in words after "must be"; choices most like `value` come first."""
    options = _options(kind) or [kind]
    literals = [show(choice) for choice in choices(kind)]
    if isinstance(value, str):
        literals = nearest_first(repr(value), literals)
    words = [*literals, *(_name(option) for option in options if get_origin(option) is not Literal)]
    return any_of(words)


def any_of(words: Sequence[str]) -> str:
    """The words as "a, b or c"."""
    return " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def choices(kind: Any) -> tuple[Any, ...]:
    """Every value that the Literals within `kind` allow; empty where there is none."""
    options = _options(kind) or [kind]
    return tuple(value for option in options if get_origin(option) is Literal for value in get_args(option))


def show(value: Any) -> str:
    """`value` on one line for a message: text in quotes, the rest as TOML writes it; long ones are cut."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        text = f"[{', '.join(map(show, value))}]"
    elif isinstance(value, dict):
        text = "a table"
    else:
        text = repr(value) if isinstance(value, str) else " ".join(str(value).split())
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _options(kind: Any) -> list[Any]:
    """The members of a union; empty for any other type."""
    return list(get_args(kind)) if get_origin(kind) in (Union, types.UnionType) else []


def _item(kind: Any) -> Any:
    match get_args(kind):
        case (item, last) if last is Ellipsis and item in _SCALARS:
            return item
    raise TypeError(f"a setting cannot have the type {kind!r}: tuples are tuple[bool | int | float | str, ...]")


def _name(option: Any) -> str:
    if get_origin(option) is tuple:
        return f"a list of {_SCALARS[_item(option)][1]}"
    return _SCALARS[option][0]


def _first_fit(options: Iterable[Any], read: Callable[[Any], Any]) -> Any:
    for option in options:
        try:
            return read(option)
        except Mismatch:
            continue
    raise Mismatch


def _exactly(option: Any, value: Any) -> Any:
    if type(option) is type(value) and option == value:
        return option
    raise Mismatch


def _finite(value: float) -> float:
    try:
        number = float(value)
    except OverflowError:
        raise Mismatch from None
    if not math.isfinite(number):
        raise Mismatch
    return number


def _scalar(kind: Any, text: str) -> Any:
    if kind is bool and text in ("true", "false"):
        return text == "true"
    try:
        if kind is int and _INTEGER.fullmatch(text):
            return int(text)
        if kind is float:
            return float(text)
    except ValueError:
        raise Mismatch from None
    if kind in _SCALARS:
        raise Mismatch
    raise TypeError(f"a setting cannot have the type {kind!r}")
