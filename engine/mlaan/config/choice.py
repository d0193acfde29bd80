"""Families of settings told apart by a `name`, and the field helper every section uses."""

from dataclasses import field
from difflib import SequenceMatcher
from inspect import get_annotations
from typing import Any, ClassVar, Self, TypeVar

from mlaan.errors import UserError

T = TypeVar("T")


def setting(default: T, help: str) -> T:
    """A dataclass field with its default and one sentence of help.

    The help becomes the comment in a written TOML file and the text of `--help`. Defaults are immutable.
    """
    return field(default=default, metadata={"help": help})


def nearest_first(word: str, known: list[str]) -> list[str]:
    """The known words, the one most like `word` first; equally alike ones keep their order."""
    return sorted(known, key=lambda other: -SequenceMatcher(None, word.lower(), other.lower()).ratio())


class Choice:
    """Base of a family of frozen dataclasses; in TOML a table whose key `name` picks the member.

    A direct subclass is a family with a registry of its own. A subclass of a family is a member and registers
    itself under the name it is given:

        class DataConfig(Choice): ...

        @dataclass(frozen=True)
        class Digits(DataConfig, name="digits"):
            batch: int = setting(64, "images in a batch")

    Raises TypeError where a class is written wrongly: a member without a name, a name already taken in the
    family, a field called `name`. `dataclass(slots=True)` builds the class a second time without its name, so
    it is refused too.
    """

    name: ClassVar[str]
    """What the TOML key `name` says for this member; families have none."""
    choices: ClassVar[dict[str, type[Any]]]
    """Every member of the family by name, in the order of their definition."""

    def __init_subclass__(cls, name: str | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if Choice in cls.__bases__:
            if name is not None:
                raise TypeError(f"{cls.__name__} is a family: only its members take a name")
            cls.choices = {}
            return
        if name is None:
            raise TypeError(f'{cls.__name__} needs a name: class {cls.__name__}(…, name="…"), without slots=True')
        if "name" in get_annotations(cls):
            raise TypeError(f"{cls.__name__} must not have a field called name: the key `name` picks the member")
        if name in cls.choices:
            raise TypeError(f"{name!r} is taken by {cls.choices[name].__qualname__}: {cls.__name__} needs another")
        cls.name = name
        cls.choices[name] = cls

    @classmethod
    def make(cls, name: str, **fields: Any) -> Self:
        """The member called `name`, with the given fields and defaults for the rest.

        Raises UserError for an unknown name and RuntimeError while no member is defined.
        """
        if not cls.choices:
            raise RuntimeError(f"{cls.__name__} has no members yet: import the package that defines them first")
        if name not in cls.choices:
            known = ", ".join(map(repr, nearest_first(name, list(cls.choices))))
            raise UserError(f"{cls.__name__} has no member {name!r}: choose from {known}")
        return cls.choices[name](**fields)
