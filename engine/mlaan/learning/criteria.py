"""Reconstruction of the image; the losses on whole batches are operators: similarity_loss, contrast_loss."""

import torch
from torch import Tensor
from torch.nn import functional as F

from mlaan.learning.site import Normalisation


def unnormalised(images: Tensor, normalisation: Normalisation) -> Tensor:
    """Images (N, C, H, W) with their normalisation undone: pixels from 0 to 1."""
    channels = zip(images.unbind(1), *normalisation, strict=True)
    # number by number: a tensor of them would wait for the device
    return torch.stack([channel * deviation + mean for channel, mean, deviation in channels], 1).clamp(0, 1)


def reconstruction(pixels: Tensor, images: Tensor, normalisation: Normalisation) -> Tensor:
    """Mean binary cross-entropy of painted pixels (InfoPro, Wang et al., ICLR 2021).

    Args:
        pixels: (N, C, H, W), before the sigmoid.
        images: (N, C, H, W), normalised.
    """
    return F.binary_cross_entropy_with_logits(pixels, unnormalised(images, normalisation))
