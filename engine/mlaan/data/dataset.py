"""What a data set is, and what a batch of it is."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from mlaan.errors import UserError

Augment = Callable[[Tensor, torch.Generator], Tensor]
"""Changes images (N, C, H, W), keeping shape, dtype and device; random numbers come from a CPU generator."""


class Batch(NamedTuple):
    """Images ready for the network."""

    images: Tensor
    """(N, C, H, W) float32 on the device, augmented and normalised."""
    labels: Tensor
    """(N,) int64 on the device."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """Training and test images in memory, with what is needed to normalise them.

    Raises UserError where the parts do not fit together.
    """

    train_images: Tensor
    """(N, C, H, W) uint8."""
    train_labels: Tensor
    """(N,) int64, 0 to classes - 1."""
    test_images: Tensor
    """(M, C, H, W) uint8, never trained on."""
    test_labels: Tensor
    """(M,) int64."""
    classes: int
    mean: tuple[float, ...]
    """Mean of each channel, on the scale where 255 is 1."""
    std: tuple[float, ...]
    """Standard deviation of each channel on that scale, above 0."""

    def __post_init__(self) -> None:
        _check_part("train", self.train_images, self.train_labels, self.classes)
        _check_part("test", self.test_images, self.test_labels, self.classes)
        if self.train_images.shape[1:] != self.test_images.shape[1:]:
            train, test = tuple(self.image_shape), tuple(self.test_images.shape[1:])
            raise UserError(f"train_images of shape {train} and test_images of shape {test} must be alike")
        channels = self.image_shape[0]
        for name, values in ("mean", self.mean), ("std", self.std):
            if len(values) != channels:
                raise UserError(f"{name} = {values} must hold one number for each of the {channels} channels")
        if not all(value > 0 for value in self.std):
            raise UserError(f"std = {self.std} must be above 0: a channel with one value everywhere says nothing")

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        _, channels, height, width = self.train_images.shape
        return channels, height, width


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel of uint8 images (N, C, H, W), where 255 counts as 1.

    Counts grey levels in integers first, so the result does not depend on the machine or its threads.
    """
    levels = torch.arange(256, dtype=torch.float64) / 255
    means, stds = [], []
    for channel in images.unbind(1):
        share = torch.bincount(channel.reshape(-1), minlength=256).to(torch.float64) / channel.numel()
        mean = (share * levels).sum()
        means.append(float(mean))
        stds.append(float((share * (levels - mean) ** 2).sum().sqrt()))
    return tuple(means), tuple(stds)


def _check_part(part: str, images: Tensor, labels: Tensor, classes: int) -> None:
    shape = tuple(images.shape)
    if images.dtype != torch.uint8 or images.ndim != 4:
        raise UserError(f"{part}_images must be uint8 of shape (N, C, H, W), not {images.dtype} of shape {shape}")
    if images.numel() == 0:
        raise UserError(f"{part}_images of shape {shape} must not be empty")
    if labels.dtype != torch.int64 or labels.ndim != 1:
        shape = tuple(labels.shape)
        raise UserError(f"{part}_labels must be int64 of shape (N,), not {labels.dtype} of shape {shape}")
    if len(labels) != len(images):
        raise UserError(f"{part}_labels has {len(labels)} entries for {len(images)} images: each image needs one")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        wrong = low if low < 0 else high
        raise UserError(f"{part}_labels holds {wrong}, outside 0 to {classes - 1} for {classes} classes")
