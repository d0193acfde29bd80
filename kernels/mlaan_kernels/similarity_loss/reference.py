"""Similarity matching in plain PyTorch, on any device, for any float dtype: the judge in tests and the CPU's form."""

from contextlib import nullcontext

import torch
from torch import Tensor
from torch.amp.autocast_mode import is_autocast_available


def takes_deviations(features: Tensor) -> bool:
    """Whether a row holds the channels' standard deviations: as in the authors' code, else the features themselves."""
    return features.shape[1] > 3 and features.shape[2] * features.shape[3] > 1


def label_cosines(num_classes: int) -> tuple[float, float]:
    """Cosine of two centred one-hot rows of one class, and of two classes; one class alone has constant rows."""
    return (1.0, -1 / (num_classes - 1)) if num_classes > 1 else (0.0, 0.0)


def similarity_loss(features: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """See `mlaan_kernels.similarity_loss.similarity_loss`; half dtypes are computed in float32."""
    kind = features.device.type
    plain = torch.autocast(kind, enabled=False) if is_autocast_available(kind) else nullcontext()
    with plain:  # autocast would round the cosines
        x = features.to(torch.promote_types(features.dtype, torch.float32))
        directions = _directions(x.flatten(2).std(2) if takes_deviations(x) else x.flatten(1))
        if labels.ndim == 2:
            labelled = _directions(labels.to(x.dtype))
            wanted = labelled @ labelled.T
        else:
            same, others = label_cosines(num_classes)
            agree = labels[:, None] == labels
            wanted = torch.full(agree.shape, others, dtype=x.dtype, device=x.device).masked_fill(agree, same)
        return (directions @ directions.T - wanted).square().mean()


def _directions(rows: Tensor) -> Tensor:
    """Centred rows (N, R) scaled to length 1; rows that are constant up to rounding become 0, without gradient."""
    rounding = 8 * torch.finfo(rows.dtype).eps * torch.linalg.vector_norm(rows.detach(), dim=1, keepdim=True)
    centred = rows - rows.mean(1, keepdim=True)
    length = torch.linalg.vector_norm(centred, dim=1, keepdim=True)
    directed = length > rounding
    return torch.where(directed, centred / torch.where(directed, length, 1.0), 0.0)
