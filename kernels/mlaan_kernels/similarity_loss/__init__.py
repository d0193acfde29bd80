"""Similarity matching of a batch's features with its labels (Nøkland & Eidnes, ICML 2019)."""

import warnings

import torch
from torch import Tensor

from mlaan_kernels.choice import Implementation, use_triton
from mlaan_kernels.similarity_loss import reference

__all__ = ["similarity_loss"]


def similarity_loss(
    features: Tensor, labels: Tensor, num_classes: int, *, implementation: Implementation = "auto"
) -> Tensor:
    """mean_ij (S(z)_ij - S(onehot y)_ij)^2, S: cosines of centred rows; differentiable once by features.

    The row z_i holds the standard deviation of each channel of image i over its pixels (unbiased), or, of three
    channels or fewer or a single pixel, the features themselves. A constant row has no direction: its cosines and its
    gradient are 0. The maths is in this folder's README.

    Args:
        features: (N, C, H, W), N and C at least 1; float32, bfloat16, float16, or float64 for the reference.
        labels: (N,) int64, from 0 to num_classes - 1; that is not checked, it would wait for a GPU. Or (N, num_classes)
            probabilities, of any float dtype, which stand in the place of the one-hot rows; these take the reference
            form in any case, and on a GPU a RuntimeWarning says so once.
        num_classes: of the data set: the one-hot rows are as long.
        implementation: "auto", "reference" or "triton"; see `mlaan_kernels.choice`.

    Returns:
        () of float32, or float64 for float64 features. Autocast changes nothing: rows and cosines are float32 at least.

    Raises:
        ValueError: shapes, dtypes or devices do not fit, or num_classes < 1.
    """
    if features.ndim != 4 or not features.is_floating_point() or not features.numel():
        raise ValueError(
            f"features of shape {tuple(features.shape)} and {features.dtype}: give a map (N, C, H, W) of floats "
            "with at least one image, channel and pixel"
        )
    soft = labels.ndim == 2 and labels.is_floating_point()
    fits = labels.shape == (len(features), num_classes) if soft else labels.shape == features.shape[:1]
    if not fits or not (soft or labels.dtype == torch.int64) or labels.device != features.device:
        raise ValueError(
            f"labels of shape {tuple(labels.shape)} and {labels.dtype} on {labels.device}: give int64 of shape "
            f"({len(features)},), or probabilities of shape ({len(features)}, {num_classes}), on {features.device}"
        )
    if num_classes < 1:
        raise ValueError(f"num_classes = {num_classes} must be at least 1")
    fused = use_triton("similarity_loss", implementation, features)
    if fused and soft:
        warnings.warn(
            "similarity_loss: its fused kernels take classes alone; with soft labels it runs in plain PyTorch, slower "
            "(train.mixup, train.cutmix and train.label_smoothing of 0 give it classes)",
            RuntimeWarning,
            stacklevel=2,
        )
    if not fused or soft:
        return reference.similarity_loss(features, labels, num_classes)
    from mlaan_kernels.similarity_loss import autograd

    return autograd.SimilarityLoss.apply(features, labels, num_classes)
