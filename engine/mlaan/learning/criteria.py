"""Losses on whole batches: similarity matching, supervised contrast, reconstruction.

Every one is defined, with finite gradients, for any batch: constant rows, a class with one member, one class alone,
one image.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from mlaan.learning.site import Normalisation


def unit_rows(x: Tensor, floor: Tensor | None = None) -> Tensor:
    """Rows of x (N, D) scaled to length 1; a row no longer than `floor` (N, 1) becomes zero and gets no gradient."""
    length = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    directed = length > (torch.zeros_like(length) if floor is None else floor)
    return torch.where(directed, x / torch.where(directed, length, 1.0), 0.0)


def similarity(x: Tensor) -> Tensor:
    """Cosine similarities (N, N) of the centred rows of x (N, D).

    S_ij = <x_i - mean(x_i), x_j - mean(x_j)> / (|x_i - mean(x_i)| |x_j - mean(x_j)|). A constant row has no direction:
    its similarities are 0.
    """
    rounding = 8 * torch.finfo(x.dtype).eps * torch.linalg.vector_norm(x.detach(), dim=1, keepdim=True)
    directions = unit_rows(x - x.mean(1, keepdim=True), rounding)
    return directions @ directions.T


def similarity_matching(features: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Mean squared difference of the images' similarities and their labels' (Nøkland & Eidnes, ICML 2019).

    mean_ij (S(z)_ij - S(onehot y)_ij)^2. As in the authors' code a map's row z_i holds the standard deviation of each
    channel over the pixels; three channels or fewer, or a single pixel, are taken as they are.

    Args:
        features: (N, C, H, W).
        labels: (N,) int64.
    """
    deviations = features.shape[1] > 3 and features[0, 0].numel() > 1
    rows = features.flatten(2).std(2) if deviations else features.flatten(1)
    # centred one-hot rows: 1 where the classes agree, else -1 / (classes - 1)
    others = -1 / (num_classes - 1) if num_classes > 1 else 0.0
    same = labels[:, None] == labels
    # in the rows' own precision from the start
    wanted = rows.new_full(same.shape, others).masked_fill(same, float(num_classes > 1))
    return F.mse_loss(similarity(rows), wanted)


def supervised_contrastive(embeddings: Tensor, labels: Tensor, temperature: float = 0.07) -> Tensor:
    """Supervised contrastive loss on normalised embeddings (Khosla et al., NeurIPS 2020, eq. 2, one view).

    mean over anchors i of  -1/|P_i| sum over p in P_i of log( exp(z_i z_p / t) / sum over a != i of exp(z_i z_a / t) ),
    P_i: the other images of i's class. Anchors without one are left out (InfoPro's code counts them as 0 in the
    mean); without any anchor the loss is 0, with zero gradient.

    Args:
        embeddings: (N, D).
        labels: (N,) int64.
    """
    z = unit_rows(embeddings)
    itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
    logits = (z @ z.T / temperature).masked_fill(itself, -torch.inf)
    positive = (labels[:, None] == labels) & ~itself
    losses = torch.where(positive, torch.logsumexp(logits, 1, keepdim=True) - logits, 0.0)
    positives = positive.sum(1)
    return (losses.sum(1) / positives.clamp(min=1)).sum() / (positives > 0).sum().clamp(min=1)


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
