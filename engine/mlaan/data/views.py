"""How an image of any size becomes one of a fixed size: a random part of it, or its middle.

Legend: C channels, H rows, W columns. Resizing is bilinear with antialiasing, on uint8.
"""

import math
from dataclasses import dataclass
from random import Random

from torch import Tensor

MIN_AREA = 0.08
MAX_RATIO = 4 / 3
_ATTEMPTS = 10


@dataclass(frozen=True)
class RandomView:
    """A random part of the image, resized to `size` x `size`, mirrored left to right half the time.

    Its share of the area is uniform from 0.08 to 1 and its width by height log-uniform from 3/4 to 4/3
    (Szegedy et al. 2015, section 6). Numbers come from `random` alone, whose `random()` Python keeps the same in
    every version.
    """

    size: int

    def __call__(self, image_CHW: Tensor, random: Random) -> Tensor:
        """uint8 (C, size, size) of uint8 (C, H, W)."""
        from torchvision.transforms.v2.functional import resized_crop

        _, H, W = image_CHW.shape
        view = resized_crop(image_CHW, *random_box(H, W, random), [self.size, self.size], antialias=True)
        return view.flip(2) if random.random() < 0.5 else view


@dataclass(frozen=True)
class CentreView:
    """The shorter side resized to `resize`, then the middle `size` x `size`; nothing random."""

    size: int
    resize: int

    def __call__(self, image_CHW: Tensor, random: Random) -> Tensor:
        """uint8 (C, size, size) of uint8 (C, H, W)."""
        from torchvision.transforms.v2.functional import center_crop, resize

        return center_crop(resize(image_CHW, [self.resize], antialias=True), [self.size, self.size])


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
