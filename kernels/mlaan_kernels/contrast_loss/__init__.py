"""Supervised contrastive loss on normalised embeddings (Khosla et al., NeurIPS 2020, eq. 2, one view)."""

import torch
from torch import Tensor

from mlaan_kernels.choice import Implementation, use_triton
from mlaan_kernels.contrast_loss import reference

__all__ = ["contrast_loss"]


def contrast_loss(
    embeddings: Tensor, labels: Tensor, temperature: float = 0.07, *, implementation: Implementation = "auto"
) -> Tensor:
    """Mean over anchors i of -1/|P_i| sum over p in P_i of log(exp(z_i z_p / t) / sum over a != i of exp(z_i z_a / t)).

    z: embeddings scaled to length 1, a row of zeros stays 0 and gets no gradient; P_i: the other images of i's class.
    Images without one are no anchors; without any anchor the loss is 0, with zero gradient. Differentiable once by the
    embeddings. The maths is in this folder's README.

    Args:
        embeddings: (N, D), N and D at least 1; float32, bfloat16, float16, or float64 for the reference.
        labels: (N,) int64.
        temperature: t > 0.
        implementation: "auto", "reference" or "triton"; see `mlaan_kernels.choice`.

    Returns:
        () of float32, or float64 for float64 embeddings. Autocast changes nothing: the logits are float32 at least.

    Raises:
        ValueError: shapes, dtypes or devices do not fit, or temperature <= 0.
    """
    if embeddings.ndim != 2 or not embeddings.is_floating_point() or not embeddings.numel():
        raise ValueError(
            f"embeddings of shape {tuple(embeddings.shape)} and {embeddings.dtype}: give rows (N, D) of floats, at "
            "least one number in one row"
        )
    if labels.shape != embeddings.shape[:1] or labels.dtype != torch.int64 or labels.device != embeddings.device:
        raise ValueError(
            f"labels of shape {tuple(labels.shape)} and {labels.dtype} on {labels.device}: give int64 of shape "
            f"({len(embeddings)},) on {embeddings.device}"
        )
    if not temperature > 0:
        raise ValueError(f"temperature = {temperature} must be greater than 0")
    if not use_triton("contrast_loss", implementation, embeddings):
        return reference.contrast_loss(embeddings, labels, temperature)
    from mlaan_kernels.contrast_loss import autograd

    return autograd.ContrastLoss.apply(embeddings, labels, temperature)
