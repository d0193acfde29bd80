"""The norm in plain PyTorch, on any device: the judge in tests, and the fallback without libraries."""

from collections.abc import Sequence

import torch
from torch import Tensor


def grad_norm(grads: Sequence[Tensor], inverse_scale: float) -> tuple[Tensor, Tensor]:
    """See `mlaan_kernels.grad_norm.grad_norm`."""
    norms = torch.stack([torch.linalg.vector_norm(grad.double()) for grad in grads])
    finite = torch.stack([grad.isfinite().all() for grad in grads]).all()
    return (inverse_scale * torch.linalg.vector_norm(norms)).float(), finite
