"""The lists of images that a run began with, and goes on with, whatever becomes of their folder meanwhile."""

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from mlaan.atomic import replacing
from mlaan.data.arrays import load_arrays
from mlaan.data.check import OpenedPart
from mlaan.data.files import ImageFiles
from mlaan.errors import UserError

_FIELDS = ("names", "labels", "sizes", "classes")


def keep_lists(path: Path, parts: Mapping[str, OpenedPart]) -> None:
    """Writes the lists of some parts, by their names, whole or not at all."""
    arrays = {}
    for name, (files, classes, *_) in parts.items():
        sizes = np.empty((0, 2), dtype=np.int32) if files.sizes is None else files.sizes
        encoded = np.array([os.fsencode(one) for one in classes])
        values = (files.names, files.labels.numpy(), sizes, encoded)
        arrays |= {f"{name} {field}": value for field, value in zip(_FIELDS, values, strict=True)}
    try:
        with replacing(path) as file:
            np.savez_compressed(file, **arrays)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}: make room there") from None


def kept_lists(path: Path, root: Path, names: tuple[str, ...]) -> list[OpenedPart]:
    """The parts of these names, their files below `root`; those that are gone show when they are read.

    Raises:
        UserError: the file is damaged, or a part's folder is not there.
    """
    try:
        arrays = load_arrays(path, [f"{name} {field}" for name in names for field in _FIELDS])
    except ValueError as damage:
        raise UserError(
            f"{path} is damaged ({damage}): delete it, then the run goes on where data.root is as it was at its start"
        ) from None
    parts = []
    for name in names:
        if not (root / name).is_dir():
            where = "" if root.is_absolute() else f" (looked for below the present folder, {Path.cwd()})"
            raise UserError(f"{root / name} is not there{where}: where the images are now says --data.root DIR")
        paths, labels, sizes, classes = (arrays[f"{name} {field}"] for field in _FIELDS)
        files = ImageFiles(root / name, paths, torch.from_numpy(labels), sizes if len(sizes) else None)
        parts.append(OpenedPart(files, [os.fsdecode(bytes(one)) for one in classes], {}, ""))
    return parts
