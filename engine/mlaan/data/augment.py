"""Random changes to a whole batch at once, on its own device, and normalisation.

Legend: N images, C channels, H rows, W columns. Random numbers are drawn on the CPU whatever the device, so
that a run on a GPU sees the images a run on the CPU sees.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mlaan.errors import UserError

Edge = Literal["zero", "reflect"]


@dataclass(frozen=True)
class CropFlip:
    """Pads by `pad` pixels, crops back to size at a random place, then mirrors half the images left to right.

    `edge` says what the padding holds: zeros, or the image mirrored at its outermost pixels without repeating
    them.
    """

    pad: int
    edge: Edge
    flip: bool

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Changed images (N, C, H, W) of the same dtype on the same device; `generator` lives on the CPU.

        Raises UserError where a mirrored edge is wider than the image allows.
        """
        if self.pad:
            images = random_crop(images, self.pad, self.edge, generator)
        return random_flip(images, generator) if self.flip else images


def random_crop(images_NCHW: Tensor, pad: int, edge: Edge, generator: torch.Generator) -> Tensor:
    """Each image shifted by up to `pad` pixels up or down and left or right, every shift equally likely."""
    N, _, H, W = images_NCHW.shape
    tops_N, lefts_N = torch.randint(2 * pad + 1, (2, N), generator=generator).to(images_NCHW.device)
    windows = pad_edges(images_NCHW, pad, edge).unfold(2, H, 1).unfold(3, W, 1)
    return windows[torch.arange(N, device=images_NCHW.device), :, tops_N, lefts_N]


def pad_edges(images_NCHW: Tensor, pad: int, edge: Edge) -> Tensor:
    """Images (N, C, H + 2·pad, W + 2·pad) of any dtype; PyTorch's own reflection takes no uint8."""
    _, _, H, W = images_NCHW.shape
    if edge == "zero":
        return torch.nn.functional.pad(images_NCHW, (pad, pad, pad, pad))
    if pad >= min(H, W):
        raise UserError(f"a mirrored edge of {pad} pixels needs images larger than that, not {H}x{W}")
    rows, columns = (_mirrored(size, pad, images_NCHW.device) for size in (H, W))
    return images_NCHW.index_select(2, rows).index_select(3, columns)


def _mirrored(size: int, pad: int, device: torch.device) -> Tensor:
    """Source index of every padded position: pad, …, 1, 0, 1, …, size-1, size-2, …"""
    position = torch.arange(-pad, size + pad, device=device)
    return (size - 1) - ((size - 1) - position.abs()).abs()


def random_flip(images_NCHW: Tensor, generator: torch.Generator) -> Tensor:
    """Each image mirrored left to right with probability one half."""
    flip_N = torch.rand(len(images_NCHW), generator=generator) < 0.5
    flip_N111 = flip_N.to(images_NCHW.device)[:, None, None, None]
    return torch.where(flip_N111, images_NCHW.flip(3), images_NCHW)


def normalise(images_NCHW: Tensor, mean_C: Tensor, std_C: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """(image / 255 - mean) / std per channel of uint8 images, computed in float32 and given as `dtype`."""
    scale_C = 1 / (255 * std_C)
    offset_C = -mean_C / std_C
    return torch.addcmul(offset_C[:, None, None], images_NCHW.float(), scale_C[:, None, None]).to(dtype)
