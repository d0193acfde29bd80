"""Training batches with soft labels: smoothed, and mixed in pairs.

Legend: N images, C channels, H rows, W columns, V classes.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mlaan.data.dataset import Batch
from mlaan.data.loader import mixed_seed

_MIXING = 1
"""Sets the random numbers of a batch apart from those of its images' views."""


class Mix(NamedTuple):
    """How the images of one batch are mixed, each with the one before it.

    Attributes:
        share: of its own label, 0 to 1.
        box: (top, left, height, width) that comes from the other image; None: all pixels are averaged by `share`.
    """

    share: float
    box: tuple[int, int, int, int] | None


class Mixing:
    """Makes a batch's labels (N, V) probabilities, and mixes its images: a `change` of a Loader.

    Label smoothing (Szegedy et al. 2016): (1 - e) onehot + e / V. mixup (Zhang et al. 2018): images and labels are
    averaged in pairs, by a share from Beta(mixup, mixup). CutMix (Yun et al. 2019): a box of the other image is pasted,
    its area by a share from Beta(cutmix, cutmix), and labels are averaged by the area that it really has. With both
    each batch gets one of them, at even odds. Each image is mixed with the one before it: the order is random.

    A batch's random numbers come from (seed, epoch, number of the batch) alone, so that a resumed run goes on exactly.
    Images are normalised when they are mixed; as that is linear, it makes no difference. Nothing waits for the device.
    """

    def __init__(
        self, classes: int, seed: int, *, label_smoothing: float = 0.0, mixup: float = 0.0, cutmix: float = 0.0
    ) -> None:
        self.classes, self.seed = classes, seed
        self.label_smoothing, self.mixup, self.cutmix = label_smoothing, mixup, cutmix

    def __call__(self, batch: Batch, epoch: int, number: int) -> Batch:
        """The batch of that number of an epoch, mixed; images (N, C, H, W), labels (N,) int64."""
        images, labels = batch
        smoothing = self.label_smoothing
        soft = torch.full((len(labels), self.classes), smoothing / self.classes, device=labels.device)
        soft = soft.scatter_add_(1, labels[:, None], torch.full_like(soft[:, :1], 1 - smoothing))
        mix = self.mix(epoch, number, *images.shape[2:])
        if mix is None:
            return Batch(images, soft)
        soft = mix.share * soft + (1 - mix.share) * _before(soft)
        if mix.box is None:
            return Batch(mix.share * images + (1 - mix.share) * _before(images), soft)
        top, left, height, width = mix.box
        box = slice(top, top + height), slice(left, left + width)
        mixed = images.clone()
        mixed[:, :, *box] = _before(images[:, :, *box])
        return Batch(mixed, soft)

    def mix(self, epoch: int, number: int, H: int, W: int) -> Mix | None:
        """How a batch of an epoch is mixed, images of H x W pixels; None: not at all."""
        if not self.mixup and not self.cutmix:
            return None
        # NumPy's compatibility policy freezes RandomState's stream, of the beta distribution too.
        seed = mixed_seed(self.seed, epoch, number, _MIXING)
        random = np.random.RandomState([seed & 0xFFFFFFFF, seed >> 32])
        takes_mixup = bool(self.mixup) and (not self.cutmix or random.random_sample() < 0.5)
        strength = self.mixup if takes_mixup else self.cutmix
        share = float(random.beta(strength, strength))
        if takes_mixup:
            return Mix(share, None)
        height, width = (round(side * math.sqrt(1 - share)) for side in (H, W))
        middle, centre = random.randint(H), random.randint(W)
        top, bottom = max(0, middle - height // 2), min(H, middle - height // 2 + height)
        left, right = max(0, centre - width // 2), min(W, centre - width // 2 + width)
        return Mix(1 - (bottom - top) * (right - left) / (H * W), (top, left, bottom - top, right - left))


def _before(values: Tensor) -> Tensor:
    """For each row the one before it; for the first, the last."""
    return torch.cat([values[-1:], values[:-1]])
