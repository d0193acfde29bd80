"""The decoder of InfoPro: paints the image out of a module's features."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mlaan.learning.heads import as_map, map_shape
from mlaan.learning.leap import initialise


class Painter(nn.Module):
    """3x3 convolution-BatchNorm-ReLU to `width` channels, bilinear upsampling to `size`, 3x3 convolution.

    InfoPro's CIFAR code upsamples before the first convolution already, its ImageNet code does not: there the wide
    features would cost more at the image's size than the network itself.
    """

    def __init__(self, channels: int, painted: int, size: Sequence[int], width: int = 12) -> None:
        super().__init__()
        self.size = tuple(size)
        self.narrow = nn.Sequential(nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.paint = nn.Conv2d(width, painted, 3, padding=1)
        initialise(self)

    def forward(self, h: Tensor) -> Tensor:
        """(N, channels, H, W) -> (N, painted, *size), before the sigmoid."""
        return self.paint(F.interpolate(self.narrow(h), self.size, mode="bilinear", align_corners=True))


class Decoder(nn.Module):
    """Features -> the image's pixels before the sigmoid.

    Args:
        shape: (C, H, W) or (T, C) of the features.
        image_shape: (C, H, W) of the images.
        patches: features and image are cut into patches x patches parts, each with a painter of its own.
    """

    def __init__(self, shape: Sequence[int], image_shape: Sequence[int], patches: int = 1) -> None:
        super().__init__()
        self.patches = patches
        channels, (painted, *side) = map_shape(shape)[0], image_shape
        heights, widths = ([(part + 1) * n // patches - part * n // patches for part in range(patches)] for n in side)
        self.painters = nn.ModuleList(Painter(channels, painted, (h, w)) for h in heights for w in widths)

    def forward(self, h: Tensor) -> Tensor:
        """(N, C, H, W) or (N, T, C) -> (N, image C, image H, image W)."""
        parts = [paint(patch) for paint, patch in zip(self.painters, cut_patches(as_map(h), self.patches), strict=True)]
        rows = [torch.cat(parts[at : at + self.patches], 3) for at in range(0, len(parts), self.patches)]
        return torch.cat(rows, 2)


def cut_patches(h: Tensor, patches: int) -> list[Tensor]:
    """A map (N, C, H, W) in patches x patches parts of one size, row by row.

    Where a side does not divide, neighbours overlap.
    """
    height, width = (-(-n // patches) for n in h.shape[2:])
    tops, lefts = ([part * n // patches for part in range(patches)] for n in h.shape[2:])
    return [h[:, :, top : top + height, left : left + width] for top in tops for left in lefts]
