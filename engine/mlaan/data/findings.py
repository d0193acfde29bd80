"""What an image file is: good, odd or of no use."""

import warnings
from typing import NamedTuple

from mlaan.data.files import decode
from mlaan.data.store import Unreadable

GOOD = "good"
CRASHES = "crashes the decoder"
LEFT_OUT = ("empty", "truncated", "no image", "tiny", "unreadable", CRASHES)
ODD = ("grey", "CMYK", "not JPEG", "turned by EXIF")
KINDS = (GOOD, *LEFT_OUT, *ODD)
"""What a file may be; `LEFT_OUT` are of no use, `ODD` are used: as RGB, and not turned.

"truncated" is broken off or damaged, "no image" is none that torchvision decodes (JPEG, PNG, WebP), "unreadable" may
not be opened or leads nowhere.
"""
PASSING = ("unreadable", CRASHES)
"""What a file need not be for ever, though it stays the same: rights change, and memory is short at times."""

LEAST_SIDE = 4
"""Pixels; an image with a shorter side is "tiny"."""

_MAGIC = (b"\xff\xd8", b"\x89PNG", b"RIFF")


class Finding(NamedTuple):
    """What a file is: one of KINDS, its height and width (0 where unknown)."""

    kind: str
    height: int = 0
    width: int = 0


def inspect(path: str) -> Finding:
    """What a file is; decodes all of it."""
    try:
        with open(path, "rb") as file:
            start = file.read(4)
    except OSError:
        return Finding("unreadable")
    if not start:
        return Finding("empty")
    try:
        image = decode(path)
    except Unreadable:
        return Finding("truncated" if start.startswith(_MAGIC) else "no image")
    _, height, width = image.shape
    if min(height, width) < LEAST_SIDE:
        return Finding("tiny", height, width)
    return Finding(_oddity(path), height, width)


def _oddity(path: str) -> str:
    from PIL import Image

    try:
        # It warns of large images and of damaged EXIF, which concern nobody here.
        with warnings.catch_warnings(action="ignore"), Image.open(path) as image:
            if image.format != "JPEG":
                return "not JPEG"
            if image.mode != "RGB":
                return {"L": "grey", "CMYK": "CMYK"}.get(image.mode, GOOD)
            return "turned by EXIF" if image.getexif().get(0x0112, 1) in range(2, 9) else GOOD
    except Exception:  # it fails in many ways, at large images too, but torchvision decodes it, and that is what counts
        return GOOD
