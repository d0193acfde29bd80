"""The ways of getting at ImageNet's images; all give the same images in the same order, up to a decoder's rounding."""

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch

from mlaan.data import dali
from mlaan.data.check import OpenedPart, check_part, open_part
from mlaan.data.held import HeldImages
from mlaan.data.kept import kept_lists
from mlaan.data.made_up import TEST_PER_CLASS, TRAIN_PER_CLASS, MadeUpImages
from mlaan.data.store import Images
from mlaan.errors import UserError

if TYPE_CHECKING:
    from mlaan.data.packed import PackedImages
    from mlaan.data.tar import TarImages

Backend = Literal["auto", "dali", "torchvision", "packed", "memory", "synthetic"]

PARTS = ("train", "val")


class Opened(NamedTuple):
    """Both parts of a set of images.

    Attributes:
        backend: whose they are; not "auto".
        train, test: the images.
        notes: lines for the person who trains.
        lists: {part: files and classes} where single files are read, else None.
    """

    backend: Backend
    train: Images
    test: Images
    notes: tuple[str, ...]
    lists: dict[str, OpenedPart] | None = None


def open_images(
    backend: Backend,
    root: str,
    device: torch.device,
    *,
    classes: int,
    side: int,
    workers: int,
    kept: Path | None = None,
) -> Opened:
    """Both parts of `data.root` = `root`, by one of the backends.

    Args:
        classes: how many there must be.
        side: height and width of made-up images, in pixels.
        workers: threads for what is decoded at once.
        kept: a file by `keep_lists`; where single files are read, these are they, and the folder is not listed.

    Raises:
        UserError: something is missing or does not fit.
    """
    folder = Path(root).expanduser()
    why = ()
    if backend == "auto":
        backend, reason = choose(folder, device)
        why = (f"data.backend = 'auto': {backend}, {reason}",)
    if backend == "synthetic":
        train, test = (
            MadeUpImages(count * classes, classes, side, part)
            for part, count in enumerate((TRAIN_PER_CLASS, TEST_PER_CLASS))
        )
        return Opened(backend, train, test, ("data.backend = 'synthetic': the images are made up",))
    if backend == "packed":
        packed = [_open_packed(folder, part, root) for part in PARTS]
        names = [part.classes for part in packed]
        if all(part.numbered for part in packed):  # a number that one part has no image of is a class all the same
            names = [max(names, key=len)] * 2
        require_same_classes(names, root, classes)
        return Opened(backend, packed[0], packed[1], why + _notes(packed))
    opened = kept_lists(kept, folder, PARTS) if kept else [open_part(folder / part, root) for part in PARTS]
    require_same_classes([part.classes for part in opened], root, classes)
    if backend == "dali":
        opened, said = _with_sizes(opened, root, kept is not None)
        why += said
    files = [part.files for part in opened]
    images: Sequence[Images] = HeldImages.load(files, workers) if backend == "memory" else files
    return Opened(backend, images[0], images[1], why + _notes(opened), dict(zip(PARTS, opened, strict=True)))


def choose(root: Path, device: torch.device) -> tuple[Backend, str]:
    """What data.backend = "auto" means for a folder and a device, and why."""
    if holds_packed(root):
        return "packed", "as data.root holds packed images or tar files"
    if device.type != "cuda":
        return "torchvision", "as there is no GPU"
    if reason := dali.why_not():
        return "torchvision", f"as {reason}"
    return "dali", "which decodes on the GPU too"


def holds_packed(root: Path) -> bool:
    """Whether a part of `root` is packed, or tar files."""
    from mlaan.data.packed import is_packed
    from mlaan.data.tar import has_tars

    return any(is_packed(root / part) or has_tars(root, part) for part in PARTS)


def _open_packed(folder: Path, part: str, root: str) -> "PackedImages | TarImages":
    from mlaan.data.packed import PackedImages, is_packed
    from mlaan.data.tar import TarImages, has_tars

    if has_tars(folder, part):
        return TarImages.open(folder, part)
    if not is_packed(folder / part):
        raise UserError(
            f"data.backend = 'packed', but {folder / part} holds no packed images: `mlaan data pack {root} OUT` writes "
            "them, then set data.root = OUT"
        )
    return PackedImages.open(folder / part)


def _with_sizes(opened: list[OpenedPart], root: str, is_kept: bool) -> tuple[list[OpenedPart], tuple[str, ...]]:
    """The parts after a check of those that had none, and a line on it: DALI must know what size an image has."""
    if reason := dali.why_not():
        raise UserError(f"data.backend = 'dali', but {reason}, or set data.backend = 'torchvision'")
    if is_kept and any(part.files.sizes is None for part in opened):
        raise UserError(
            "data.backend = 'dali' must know the images' sizes, and this run began without a check that finds them: go "
            "on with data.backend = 'torchvision'"
        )
    unchecked = [part.files.root for part in opened if part.files.sizes is None]
    for folder in unchecked:
        warnings.warn(
            f"checking {folder} first, once, as DALI needs the images' sizes: of a large folder `mlaan data check "
            f"{root}` shows how far it is",
            RuntimeWarning,
            stacklevel=2,
        )
        check_part(folder, root, min(32, os.cpu_count() or 1))
    if not unchecked:
        return opened, ()
    names = " and ".join(map(str, unchecked))
    return [open_part(part.files.root, root) for part in opened], (f"checked {names} first, as DALI needs the sizes",)


def _notes(parts: "Sequence[OpenedPart | PackedImages | TarImages]") -> tuple[str, ...]:
    return tuple(part.note for part in parts if part.note)


def require_same_classes(parts: Sequence[Sequence[str]], root: str, classes: int = 0) -> None:
    """Raises UserError where train and val have other classes, or not as many as `classes`, if that is not 0."""
    train, test = parts
    if odd := sorted({*train} ^ {*test}):
        there, lacking = PARTS if odd[0] in train else PARTS[::-1]
        raise UserError(
            f"data.root = {root!r}: the class folder {odd[0]!r} is in {there}, but not in {lacking}: "
            "give both the same folders"
        )
    if classes and len(train) != classes:
        raise UserError(
            f"data.classes = {classes}, but data.root = {root!r} holds {len(train)} classes: "
            f"set data.classes = {len(train)}"
        )
