"""A small tree of settings with every type a setting may have; independent of the program's own."""

from dataclasses import dataclass, field
from typing import Literal

from mlaan.config.choice import Choice, setting
from mlaan.errors import UserError


class Shape(Choice):
    """What is drawn."""


@dataclass(frozen=True)
class Circle(Shape, name="circle"):
    """A round one."""

    radius: float = setting(1.0, "radius in metres")
    colour: Literal["red", "blue"] = setting("red", "its colour")


@dataclass(frozen=True)
class Grid(Shape, name="grid"):
    rows: int = setting(2, "number of rows")
    colour: Literal["red", "green"] = setting("green", "its colour")


@dataclass(frozen=True)
class Inner:
    """A section within a section."""

    level: Literal[1, 2, "auto"] = setting("auto", "1, 2 or auto")
    shape: Shape = field(default_factory=lambda: Shape.make("grid", rows=5))


@dataclass(frozen=True)
class Part:
    """Every kind of value."""

    count: int = setting(3, "a count")
    rate: float = setting(0.5, "a rate")
    on: bool = setting(True, "a switch")
    text: str = setting("plain", "some text")
    cuts: Literal["even", "odd"] | tuple[int, ...] = setting("even", "even, odd or a list")
    scales: tuple[float, ...] = setting((1.0, 0.5), "a list of scales")
    either: str | int = setting("x", "text or number")
    inner: Inner = field(default_factory=Inner)

    def __post_init__(self) -> None:
        if self.count < 0:
            raise UserError(f"part.count = {self.count} must not be negative")


@dataclass(frozen=True)
class Tree:
    """The whole."""

    title: str = setting("untitled", "a top-level value")
    part: Part = field(default_factory=Part)
    shape: Shape = field(default_factory=lambda: Shape.make("circle", radius=2.0))


@dataclass(frozen=True)
class Demanding:
    """Two things without a default."""

    shape: Shape
    size: int = field(metadata={"help": "how large"})


@dataclass(frozen=True)
class Needs:
    """A section that must be filled in."""

    demanding: Demanding
