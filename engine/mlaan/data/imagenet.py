"""ImageNet (ILSVRC2012), or any folder of images laid out like it: <part>/<class>/<file>."""

import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from mlaan.config import DataConfig, setting
from mlaan.data.backends import Backend, open_images
from mlaan.data.dali import DaliLoader
from mlaan.data.kept import keep_lists
from mlaan.data.source import Facts, ImageSource, Loaders, require_positive
from mlaan.data.view_loader import ViewLoader
from mlaan.data.views import ViewPlan
from mlaan.errors import UserError

_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)
_RESIZE_BY_SIZE = 256 / 224
_WORKERS = 16
"""Most that "auto" takes: a GPU asks for several thousand images a second, a core decodes some hundred."""


@dataclass(frozen=True, eq=False)
class FolderDataset:
    """What is needed to train on the images."""

    classes: int
    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class ImageNet(ImageSource, DataConfig, name="imagenet"):
    """ImageNet, or any folder with train/<class>/<image> and val/<class>/<image>; val is for testing alone."""

    root: str = setting(
        "data/imagenet",
        "folder that holds train and val, each with a folder of images per class; or what `mlaan data pack` made of it",
    )
    backend: Backend = setting(
        "auto",
        "who reads the images; auto: packed where data.root holds them so, dali on a GPU where it is installed, else "
        "torchvision; memory: decoded once, for small sets; synthetic: made up, no file is read. dali, torchvision and "
        "memory give the same images in the same order, up to the decoder's rounding: a run may go on with another",
    )
    batch: int = setting(128, "images in a batch")
    classes: int = setting(1000, "number of class folders")
    size: int = setting(224, "height and width of an image in pixels; training takes a random part, mirrored or not")
    resize: int = setting(0, "in testing the shorter side, before the middle is taken; 0: size * 256 / 224")
    start_size: int = setting(0, "height and width in the first epoch, growing to size over grow_epochs; 0: size")
    grow_epochs: int = setting(0, "epochs with images smaller than size")
    workers: int | Literal["auto"] = setting(
        "auto",
        "processes (dali: threads) that decode images, with the same result for any number; 0: none of their own; "
        "auto: one for each processor, at most 16",
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
        if self.grow_epochs < 0 or bool(self.start_size) != bool(self.grow_epochs):
            raise UserError(
                f"data.grow_epochs = {self.grow_epochs} does not fit data.start_size = {self.start_size}: set both, or "
                "neither"
            )
        if self.start_size and not 0 < self.start_size < self.size:
            raise UserError(
                f"data.start_size = {self.start_size} must be from 1 to below data.size = {self.size}; 0: size"
            )

    def facts(self) -> Facts:
        return Facts(self.classes, (3, self.size, self.size), _MEAN, _STD, None)

    def smaller_sizes(self) -> list[tuple[int, int]]:
        return [(size, size) for size in self.view_plan().sizes() if size != self.size]

    def view_plan(self) -> ViewPlan:
        """What of an image is seen, in each epoch."""
        resize = self.resize or round(self.size * _RESIZE_BY_SIZE)
        return ViewPlan(self.size, resize, self.start_size, self.grow_epochs)

    def loaders(self, device: torch.device | str, seed: int, kept: Path | None = None) -> Loaders:
        """Lists the files, or takes the `kept` ones; raises UserError where folders are missing or not the same in both
        parts."""
        workers = min(_WORKERS, os.cpu_count() or 1) if self.workers == "auto" else self.workers
        plan = self.view_plan()
        opened = open_images(
            self.backend,
            self.root,
            torch.device(device),
            classes=self.classes,
            side=plan.resize,
            workers=workers,
            kept=kept,
        )
        loader = partial(
            DaliLoader if opened.backend == "dali" else ViewLoader,
            plan=plan,
            batch=self.batch,
            device=device,
            mean=_MEAN,
            std=_STD,
            seed=seed,
            workers=workers,
        )
        found = Loaders(
            FolderDataset(self.classes, self.facts().image_shape, _MEAN, _STD),
            loader(opened.train, training=True),
            loader(opened.test, training=False),
        )
        found.notes = opened.notes
        if opened.lists:
            found.keep = partial(keep_lists, parts=opened.lists)
        return found
