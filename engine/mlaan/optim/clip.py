"""The number that clips gradients by their common norm."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mlaan_kernels.grad_norm import clip_coefficient, grad_norm


def coefficient(parts: Sequence[tuple[Tensor | None, Sequence[Tensor]]], clip_norm: float) -> Tensor | None:
    """min(1, clip_norm / (norm + 1e-6)), as in torch.nn.utils.clip_grad_norm_, without waiting for the device.

    Args:
        parts: gradients, each list with one bool on the device that says whether it counts; None: it does.
        clip_norm: the largest norm that is left alone.

    Returns:
        One float32 on the device; None without any gradient.
    """
    certain = [grad for finite, grads in parts if finite is None for grad in grads]
    norms = _norms(certain)
    for finite, grads in parts:
        if finite is not None:
            norms += [torch.where(finite, norm, 0.0) for norm in _norms(grads)]
    if not norms:
        return None
    if len(norms) > 1:
        norms = [torch.linalg.vector_norm(torch.stack(norms), dtype=torch.float64).float()]
    return clip_coefficient(norms[0], clip_norm)


def _norms(grads: Sequence[Tensor]) -> list[Tensor]:
    """One norm for the gradients of each dtype."""
    dtypes = dict.fromkeys(grad.dtype for grad in grads)
    return [grad_norm([grad for grad in grads if grad.dtype == dtype])[0] for dtype in dtypes]
