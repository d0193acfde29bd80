"""Shift, mirror and normalisation in plain PyTorch, on any device: the judge in tests and the CPU's form.

Legend: N images of H rows, W columns and C channels.
"""

from typing import NamedTuple

import torch
from torch import Tensor

LOW = 0xFFFFFFFF
"""Bits of a 32-bit number, all set."""


class Choices(NamedTuple):
    """What the seeds decide.

    Attributes:
        down, right: (N,) int64 from -pad to pad: the view's pixel (y, x) is the image's (y + down, x + right).
        mirrored: (N,) bool.
    """

    down: Tensor
    right: Tensor
    mirrored: Tensor


def choices(seeds: Tensor, pad: int, flip: bool) -> Choices:
    """Shifts and mirroring of images, each out of its own seed (N,) int64."""
    state = _hash(_hash(seeds & LOW) ^ ((seeds >> 32) & LOW))
    down, right, mirrored = (_hash((state + draw * 0x9E3779B9) & LOW) for draw in (1, 2, 3))
    # The high half of a product: all 2 pad + 1 shifts have the same number of hashes, but for one.
    down, right = ((number * (2 * pad + 1) >> 32) - pad for number in (down, right))
    return Choices(down, right, (mirrored >> 31 == 1) & flip)


def _hash(x: Tensor) -> Tensor:
    """A one-to-one map of 32-bit numbers (in int64) in which every bit of x changes about half of the result's.

    `triple32` of C. Wellons' search for such maps (hash-prospector). Products wrap around at 64 bits, which leaves the
    lower 32 right.
    """
    x = (x ^ (x >> 17)) * 0xED5AD4BB & LOW
    x = (x ^ (x >> 11)) * 0xAC4C1B51 & LOW
    x = (x ^ (x >> 15)) * 0x31848BAB & LOW
    return x ^ (x >> 14)


def normalize_augment(
    images: Tensor, mean: Tensor, std: Tensor, seeds: Tensor, pad: int, reflect: bool, flip: bool, dtype: torch.dtype
) -> Tensor:
    """See `mlaan_kernels.normalize_augment.normalize_augment`."""
    N, H, W, C = images.shape
    down, right, mirrored = choices(seeds, pad, flip)
    if pad:
        y_NH, x_NW = (torch.arange(size, device=images.device).expand(N, size) for size in (H, W))
        x_NW = torch.where(mirrored[:, None], W - 1 - x_NW, x_NW)
        y_NH, inside_NH = _source(y_NH + down[:, None], H, reflect)
        x_NW, inside_NW = _source(x_NW + right[:, None], W, reflect)
        image = torch.arange(N, device=images.device)[:, None, None]
        views = images[image, y_NH[:, :, None], x_NW[:, None, :]]
        views = torch.where((inside_NH[:, :, None] & inside_NW[:, None, :])[..., None], views, 0)
    elif flip and images.device.type != "cpu":
        views = torch.where(mirrored[:, None, None, None], images.flip(2), images)
    else:
        views = images
    # No product is added to anything: nothing that a compiler could round in another way. A tensor for 1 / 255, since
    # division by a plain number is a multiplication on GPUs.
    at_least = torch.promote_types(dtype, torch.float32)
    unit = torch.full((), 1 / 255, dtype=at_least, device=images.device)
    # Rows of pixels and in place: on a CPU several times faster than over a last dimension of three.
    centre, scale = ((mean.to(at_least) / unit).repeat(W), (unit / std.to(at_least)).repeat(W))
    out = torch.empty(N, H, W * C, dtype=at_least, device=images.device)
    if images.device.type == "cpu" and not pad:  # image by image, so that the next pass finds it in the cache
        for one, view, mirror in zip(out, views, mirrored.tolist(), strict=True):
            one.copy_((view.flip(1) if mirror else view).reshape(H, W * C)).sub_(centre).mul_(scale)
    else:
        out.copy_(views.reshape(N, H, W * C)).sub_(centre).mul_(scale)
    return out.view(N, H, W, C).to(dtype).permute(0, 3, 1, 2)


def _source(place: Tensor, size: int, reflect: bool) -> tuple[Tensor, Tensor]:
    """Where the pixels that stand at `place`, maybe outside, come from, and which of them are inside."""
    if reflect:
        mirrored = (size - 1) - ((size - 1) - place.abs()).abs()
        return mirrored, torch.ones_like(place, dtype=torch.bool)
    return place.clamp(0, size - 1), (place >= 0) & (place < size)
