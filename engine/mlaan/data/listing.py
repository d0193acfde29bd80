"""The files of a folder of class folders, in the order that torchvision's ImageFolder gives them."""

import os
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch

from mlaan.data.files import ImageFiles
from mlaan.errors import UserError


def list_part(folder: Path, root: str) -> tuple[ImageFiles, list[str]]:
    """The image files of `folder`, one part of `data.root` = `root`, class by class, and the names of the classes.

    Raises:
        UserError: the folder is not there, has no class folders, or one of them holds no image.
    """
    from torchvision.datasets import ImageFolder

    try:
        names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
        found = ImageFolder(str(folder), allow_empty=True) if names else None
    except OSError as error:
        reason = f"{folder} cannot be read: {error.strerror}"
        if not folder.is_dir():
            reason = f"{folder} is not there"
            if not folder.is_absolute():
                reason += f" (a relative data.root is looked for below the present folder, {Path.cwd()})"
        raise _unlike(root, reason) from None
    if found is None:
        raise _unlike(root, f"{folder} has no class folders")
    if empty := sorted({*range(len(found.classes))} - {*found.targets}):
        more = f" and {len(empty) - 1} more" if len(empty) > 1 else ""
        raise UserError(
            f"data.root = {root!r}: no file in {folder / found.classes[empty[0]]}{more} is an image (.jpg .jpeg .png "
            ".webp): put some there, or remove the class folder from train and val"
        )
    names = np.array([os.fsencode(os.path.relpath(path, folder)) for path, _ in found.samples])
    return ImageFiles(folder, names, torch.tensor(found.targets)), found.classes


def _unlike(root: str, reason: str) -> UserError:
    return UserError(
        f"data.root = {root!r} must hold train/<class>/*.JPEG and val/<class>/*.JPEG, but {reason}: "
        "ImageNet (ILSVRC2012) is to be had from image-net.org"
    )


def class_times(folder: Path) -> dict[str, int]:
    """For each class folder when files were last added to it, renamed or removed, in nanoseconds.

    The latest modification of the class folder and those below it; none where `folder` is not there.
    """
    times = {}
    for name in [entry.name for entry in os.scandir(folder) if entry.is_dir()] if folder.is_dir() else ():
        below = [place for place, _, _ in os.walk(folder / name, followlinks=True)]
        times[name] = max((os.stat(place).st_mtime_ns for place in below), default=0)
    return times


def file_stamps(files: ImageFiles) -> np.ndarray:
    """(N, 2) int64: of each file its size in bytes and when it was last written to, in nanoseconds; 0 where unknown."""
    stamps = np.zeros((len(files), 2), dtype=np.int64)
    for i in range(len(files)):
        with suppress(OSError):
            found = os.stat(files.path(i))
            stamps[i] = found.st_size, found.st_mtime_ns
    return stamps
