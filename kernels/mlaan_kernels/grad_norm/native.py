"""The norm through the compiled operator mlaan::grad_norm (csrc/grad_norm*)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mlaan_kernels.updates.native import operator


def grad_norm(grads: Sequence[Tensor], inverse_scale: float) -> tuple[Tensor, Tensor]:
    """See `mlaan_kernels.grad_norm.grad_norm`; the library loaded."""
    norm = torch.empty((), dtype=torch.float32, device=grads[0].device)
    finite = torch.empty((), dtype=torch.bool, device=grads[0].device)
    operator("grad_norm")(grads, inverse_scale, norm, finite)
    return norm, finite
