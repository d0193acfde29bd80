"""The contrastive loss in plain PyTorch, on any device, for any float dtype: the judge in tests and the CPU's form."""

from contextlib import nullcontext

import torch
from torch import Tensor
from torch.amp.autocast_mode import is_autocast_available


def contrast_loss(embeddings: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """See `mlaan_kernels.contrast_loss.contrast_loss`; half dtypes are computed in float32."""
    kind = embeddings.device.type
    plain = torch.autocast(kind, enabled=False) if is_autocast_available(kind) else nullcontext()
    with plain:  # autocast would round the logits
        z = _unit_rows(embeddings.to(torch.promote_types(embeddings.dtype, torch.float32)))
        itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
        logits = (z @ z.T / temperature).masked_fill(itself, -torch.inf)
        positive = (labels[:, None] == labels) & ~itself
        losses = torch.where(positive, torch.logsumexp(logits, 1, keepdim=True) - logits, 0.0).sum(1)
        positives = positive.sum(1)
        return (losses / positives.clamp(min=1)).sum() / (positives > 0).sum().clamp(min=1)


def _unit_rows(x: Tensor) -> Tensor:
    """Rows (N, D) scaled to length 1; a row of zeros stays zero and gets no gradient."""
    length = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    directed = length > 0
    return torch.where(directed, x / torch.where(directed, length, 1.0), 0.0)
