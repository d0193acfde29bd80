"""A small part of a folder of images, its check, and what training makes of it."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mlaan.data.check import CheckedPart, check_part, open_part

GOOD = ["cat/1.jpg", "cat/2.jpg", "cat/3.jpg", "dog/1.jpg", "dog/2.jpg", "dog/3.jpg"]
ALL = [*GOOD, "dog/empty.jpg"]


def write(path: Path, height: int = 8, width: int = 9, mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), (200, 100, 50)).convert(mode).save(path, "JPEG")


@pytest.fixture
def part(tmp_path: Path) -> Path:
    """Two classes of three images and one file that is empty."""
    part = tmp_path / "train"
    for name in GOOD:
        write(part / name)
    (part / "dog/empty.jpg").write_bytes(b"")
    return part


def look(part: Path, **keywords) -> CheckedPart:
    return check_part(part, str(part.parent), 1, **keywords)


def training(part: Path) -> tuple[list[str], str]:
    """What training makes of the part: names of its files, and the note."""
    opened = open_part(part, str(part.parent))
    return [os.fsdecode(bytes(name)) for name in opened.files.names], opened.note


def same(one: CheckedPart, other: CheckedPart) -> bool:
    arrays = ("names", "labels", "kinds", "sizes", "stamps")
    return (one.classes, one.times) == (other.classes, other.times) and all(
        np.array_equal(getattr(one, name), getattr(other, name)) for name in arrays
    )
