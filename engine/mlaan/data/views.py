"""How an image of any size becomes one of a fixed size: a random part of it, or its middle.

Legend: C channels, H rows, W columns. Resizing is bilinear with antialiasing, on uint8.
"""

import math
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor
from torch.nn.functional import interpolate

MIN_AREA = 0.08
MAX_RATIO = 4 / 3
_ATTEMPTS = 10
_STEP, _SMALL_STEP = 32, 8
"""Sizes grow in multiples of 32 pixels, by which such networks shrink their images; images below 128 in steps of 8."""


@dataclass(frozen=True)
class RandomView:
    """A random part of the image, resized to `size` x `size`.

    Its share of the area is uniform from 0.08 to 1 and its width by height log-uniform from 3/4 to 4/3
    (Szegedy et al. 2015, section 6). Numbers come from `random` alone, whose `random()` Python keeps the same in
    every version.
    """

    size: int

    def box(self, H: int, W: int, random: Random) -> tuple[int, int, int, int]:
        """(top, left, height, width) of the part of an image of H x W pixels that `__call__` shows."""
        return random_box(H, W, random)

    def __call__(self, image_CHW: Tensor, random: Random) -> Tensor:
        """uint8 (C, size, size) of uint8 (C, H, W)."""
        _, H, W = image_CHW.shape
        top, left, height, width = self.box(H, W, random)
        part = image_CHW[None, :, top : top + height, left : left + width]
        # Pixel by pixel, as decoders give them and the loader hands them on: twice as fast as plane by plane.
        part = part.contiguous(memory_format=torch.channels_last)
        if (height, width) != (self.size, self.size):
            part = interpolate(part, (self.size, self.size), mode="bilinear", antialias=True)
        return part[0]


@dataclass(frozen=True)
class CentreView:
    """The shorter side resized to `resize`, then the middle `size` x `size`; nothing random."""

    size: int
    resize: int

    def __call__(self, image_CHW: Tensor, random: Random) -> Tensor:
        """uint8 (C, size, size) of uint8 (C, H, W)."""
        from torchvision.transforms.v2.functional import center_crop, resize

        return center_crop(resize(image_CHW, [self.resize], antialias=True), [self.size, self.size])


View = RandomView | CentreView


@dataclass(frozen=True)
class ViewPlan:
    """What of an image is seen, in each epoch.

    Attributes:
        size: height and width of an image in training, from epoch `grow_epochs` on, and in testing.
        resize: in testing the shorter side, before the middle is taken.
        start_size: in the first epoch of training; it grows evenly to `size` over `grow_epochs` epochs, in whole steps
            (Howard 2018, progressive resizing). 0: always `size`.
        grow_epochs: how many epochs have images smaller than `size`.
    """

    size: int
    resize: int
    start_size: int = 0
    grow_epochs: int = 0

    def size_at(self, epoch: int) -> int:
        """Height and width in training in an epoch, counting from 0."""
        if not self.start_size or epoch >= self.grow_epochs:
            return self.size
        grown = self.start_size + (self.size - self.start_size) * epoch / self.grow_epochs
        step = _STEP if self.size >= 4 * _STEP else _SMALL_STEP
        return max(self.start_size, int(grown // step) * step)

    def sizes(self) -> list[int]:
        """Every size that training has, rising."""
        return sorted({self.size_at(epoch) for epoch in range(self.grow_epochs + 1)})

    def train_view(self, epoch: int) -> RandomView:
        return RandomView(self.size_at(epoch))

    def test_view(self) -> CentreView:
        return CentreView(self.size, self.resize)


def random_box(H: int, W: int, random: Random) -> tuple[int, int, int, int]:
    """(top, left, height, width) of a part of H x W pixels, as `RandomView` says.

    A shape that does not fit is drawn anew; after ten of them it is the largest centred part that does.
    """
    for _ in range(_ATTEMPTS):
        area = H * W * (MIN_AREA + (1 - MIN_AREA) * random.random())
        ratio = math.exp(math.log(MAX_RATIO) * (2 * random.random() - 1))
        height, width = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if 0 < height <= H and 0 < width <= W:
            return int((H - height + 1) * random.random()), int((W - width + 1) * random.random()), height, width
    height, width = min(H, round(W * MAX_RATIO)), min(W, round(H * MAX_RATIO))
    return (H - height) // 2, (W - width) // 2, height, width
