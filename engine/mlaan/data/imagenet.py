"""ImageNet (ILSVRC2012), or any folder of images laid out like it: <part>/<class>/<file>."""

import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from mlaan.config import DataConfig, setting
from mlaan.data.folder import FolderLoader, ImageFiles
from mlaan.data.source import Facts, ImageSource, Loaders, require_positive
from mlaan.data.views import CentreView, RandomView
from mlaan.errors import UserError

_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)
_RESIZE_BY_SIZE = 256 / 224


@dataclass(frozen=True, eq=False)
class FolderDataset:
    """The files of both parts, with what is needed to normalise them."""

    train: ImageFiles
    test: ImageFiles
    classes: int
    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class ImageNet(ImageSource, DataConfig, name="imagenet"):
    """ImageNet, or any folder with train/<class>/<image> and val/<class>/<image>; val is for testing alone."""

    root: str = setting("data/imagenet", "folder that holds train and val, each with a folder of images per class")
    batch: int = setting(128, "images in a batch")
    classes: int = setting(1000, "number of class folders")
    size: int = setting(224, "height and width of an image in pixels; training takes a random part, mirrored or not")
    resize: int = setting(0, "in testing the shorter side, before the middle is taken; 0: size * 256 / 224")
    workers: int | Literal["auto"] = setting(
        "auto",
        "processes that decode images, with the same result for any number; 0: none of their own; auto: one for "
        "each processor, at most 8",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(size=self.size)
        if self.classes < 2:
            raise UserError(f"data.classes = {self.classes} must be at least 2")
        if self.workers != "auto" and self.workers < 0:
            raise UserError(f"data.workers = {self.workers} must not be negative; 0 means no processes of their own")
        if self.resize and self.resize < self.size:
            raise UserError(
                f"data.resize = {self.resize} must not be below data.size = {self.size}; 0 means size * 256 / 224"
            )

    def facts(self) -> Facts:
        return Facts(self.classes, (3, self.size, self.size), _MEAN, _STD, None)

    def loaders(self, device: torch.device | str, seed: int) -> Loaders:
        """Lists the files; raises UserError where folders are missing or not the same in both parts."""
        train, classes = self._files("train")
        test, test_classes = self._files("val")
        if odd := sorted({*classes} ^ {*test_classes}):
            there, lacking = ("train", "val") if odd[0] in classes else ("val", "train")
            raise UserError(
                f"data.root = {self.root!r}: the class folder {odd[0]!r} is in {there}, but not in {lacking}: "
                "give both the same folders"
            )
        if len(classes) != self.classes:
            raise UserError(
                f"data.classes = {self.classes}, but data.root = {self.root!r} holds {len(classes)} classes: "
                f"set data.classes = {len(classes)}"
            )
        workers = min(8, os.cpu_count() or 1) if self.workers == "auto" else self.workers
        loader = partial(
            FolderLoader, batch=self.batch, device=device, mean=_MEAN, std=_STD, seed=seed, workers=workers
        )
        resize = self.resize or round(self.size * _RESIZE_BY_SIZE)
        return Loaders(
            FolderDataset(train, test, self.classes, self.facts().image_shape, _MEAN, _STD),
            loader(train, RandomView(self.size), shuffle=True, drop_last=True),
            loader(test, CentreView(self.size, resize), shuffle=False, drop_last=False),
        )

    def _files(self, part: str) -> tuple[ImageFiles, list[str]]:
        """The files of "train" or "val", class by class, and the names of the classes."""
        from torchvision.datasets import ImageFolder

        folder = Path(self.root).expanduser() / part
        try:
            found = ImageFolder(str(folder))
        except OSError as error:  # torchvision's own complaints are of this kind too
            reason = " ".join(str(error).split())
            if not folder.is_dir():
                reason = f"{folder} is not there"
                if not folder.is_absolute():
                    reason += f" (a relative data.root is looked for below the present folder, {Path.cwd()})"
            raise UserError(
                f"data.root = {self.root!r} must hold train/<class>/*.JPEG and val/<class>/*.JPEG, but {reason}: "
                "ImageNet (ILSVRC2012) is to be had from image-net.org"
            ) from None
        names = np.array([os.fsencode(os.path.relpath(path, folder)) for path, _ in found.samples])
        return ImageFiles(folder, names, torch.tensor(found.targets)), found.classes
