"""ImageNet-shaped folders of made-up photographs, with all that a real download can hold: odd files and bad ones."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

_FIELD = 1024
_WORDNET = ("n01440764", "n02102040", "n02979186", "n03000684", "n03028079", "n03394916", "n03417042", "n03888257")
ODD = ("grey", "cmyk", "rotated", "progressive", "png")
BAD = ("empty", "truncated", "text", "one_pixel")


@dataclass
class Made:
    """What there is in a folder; paths are relative to it.

    Attributes:
        good: {part: {path: label}} of all images that can be used, the odd ones too.
        odd: {path: one of ODD}.
        bad: {path: one of BAD}.
    """

    root: Path
    good: dict[str, dict[str, int]] = field(default_factory=lambda: {"train": {}, "val": {}})
    odd: dict[str, str] = field(default_factory=dict)
    bad: dict[str, str] = field(default_factory=dict)


def make_folder(
    root: Path,
    *,
    classes: int = 4,
    train: int = 60,
    val: int = 20,
    seed: int = 0,
    bad: bool = True,
    sides: tuple[int, int] = (60, 260),
) -> Made:
    """Writes train/<class>/*.JPEG and val/<class>/*.JPEG and tells what was written; the same for the same arguments.

    Args:
        train, val: images that can be used in each part, dealt out to the classes in turn.
        bad: one file of every kind of BAD in each part besides.
        sides: least and greatest length of a side in pixels.
    """
    random = np.random.RandomState(seed)
    nature = _Nature(random)
    made = Made(root)
    for part, count in (("train", train), ("val", val)):
        for i in range(count):
            label = i % classes
            height, width = random.randint(sides[0], sides[1] + 1, 2)
            image = Image.fromarray(nature.photograph(label, classes, height, width))
            path = f"{part}/{_wordnet(label)}/{_wordnet(label)}_{i}.JPEG"
            kind = ODD[i // 2 - 1] if i % 2 == 0 and 0 < i // 2 <= len(ODD) else ""
            _write(image, root / path, kind, int(random.randint(75, 96)))
            made.good[part][path] = label
            if kind:
                made.odd[path] = kind
        for i, kind in enumerate(BAD if bad else ()):
            path = f"{part}/{_wordnet(i % classes)}/bad_{kind}.JPEG"
            _write_bad(nature, root / path, kind)
            made.bad[path] = kind
    return made


class _Nature:
    """Photographs out of one large field of smooth noise: clouds of a class's hue over a class's stripes."""

    def __init__(self, random: np.random.RandomState) -> None:
        self._random = random
        rough = random.standard_normal((_FIELD, _FIELD))
        frequency = np.hypot(np.fft.fftfreq(_FIELD)[:, None], np.fft.rfftfreq(_FIELD)[None, :])
        spectrum = np.fft.rfft2(rough) / np.maximum(frequency, 1 / _FIELD) ** 1.3  # as photographs' spectra fall
        cloud = np.fft.irfft2(spectrum, (_FIELD, _FIELD))
        self._cloud = (cloud / np.abs(cloud).max() * 90).astype(np.float32)

    def photograph(self, label: int, classes: int, height: int, width: int) -> np.ndarray:
        """(height, width, 3) uint8."""
        top, left = self._random.randint(_FIELD - 512, size=2)
        y, x = np.ogrid[:height, :width]
        hue = 2 * np.pi * (label / classes + np.array([0, 1 / 3, 2 / 3]))
        angle = np.pi * label / classes
        stripes = 24 * np.sin((np.cos(angle) * x + np.sin(angle) * y) / 6)
        clouds = self._cloud[top : top + height, left : left + width]
        pixels = 128 + 45 * np.cos(hue) + (clouds + stripes)[..., None] * np.array([1.0, 0.9, 0.8])
        return np.clip(pixels + 4 * self._random.standard_normal((1, width, 3)), 0, 255).astype(np.uint8)


def _wordnet(label: int) -> str:
    return _WORDNET[label] if label < len(_WORDNET) else f"n1{label:07d}"


def _write(image: Image.Image, path: Path, kind: str, quality: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "png":
        image.save(path, format="PNG")
    elif kind == "rotated":
        exif = Image.Exif()
        exif[0x0112] = 6  # Orientation: to be turned by 90 degrees
        image.save(path, quality=quality, exif=exif)
    elif kind == "progressive":
        image.save(path, quality=quality, progressive=True)
    else:
        image.convert({"grey": "L", "cmyk": "CMYK"}.get(kind, "RGB")).save(path, quality=quality)


def _write_bad(nature: _Nature, path: Path, kind: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("this is not a picture\n" * 20)
    elif kind == "one_pixel":
        Image.new("RGB", (1, 1), (200, 10, 10)).save(path, format="JPEG")
    else:
        Image.fromarray(nature.photograph(0, 2, 120, 160)).save(path, format="JPEG")
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
