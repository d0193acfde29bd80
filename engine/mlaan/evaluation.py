"""Testing a network on held-out images."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mlaan.errors import UserError
from mlaan.execute import Autocast, BatchCheck, arithmetic

_TOP = 5


@dataclass(frozen=True)
class Evaluation:
    """The exported backbone on held-out images.

    Attributes:
        loss: mean cross-entropy, of logits in float32 or float64.
        top1: share of the images, 0 to 1, whose class has the highest logit.
        samples: number of images, each seen once.
        top5: share whose class is among the five highest; nan for five classes or fewer.
    """

    loss: float
    top1: float
    samples: int
    top5: float = math.nan


@torch.no_grad()
def evaluate(
    net: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    check: BatchCheck,
    *,
    autocast: Autocast,
    precision: str,
    weights: Mapping[str, Tensor] | None = None,
) -> Evaluation:
    """A network, in evaluation mode, on (images, labels) batches; sums stay on the device until the end.

    Args:
        check: what the batches are held against.
        autocast, precision: the arithmetic of the network.
        weights: values by the network's own names to take in place of its own.

    Raises:
        UserError: no batch came, or one does not fit.
    """
    loss = torch.zeros((), device=check.device, dtype=torch.float64)
    right = torch.zeros(2, device=check.device, dtype=torch.int64)
    samples, classes = 0, 0
    net.eval()
    for pair in batches:
        if isinstance(pair, Tensor):
            raise UserError("batches must hold (images, labels) pairs: write [(images, labels)] for one")
        images, labels = check(*pair, training=False)
        with autocast(), arithmetic(precision):
            logits = _logits(net, images, weights)
        logits = logits.to(images.dtype)
        classes = logits.shape[1]
        loss += F.cross_entropy(logits, labels, reduction="sum")
        best = logits.topk(min(_TOP, classes)).indices == labels[:, None]
        right += torch.stack([(logits.argmax(1) == labels).sum(), best.sum()])
        samples += images.shape[0]
    if not samples:
        raise UserError("batches is empty: there is nothing to evaluate on")
    top1, top5 = (count / samples for count in right.tolist())
    return Evaluation(loss.item() / samples, top1, samples, top5 if classes > _TOP else math.nan)


def _logits(net: nn.Module, images: Tensor, weights: Mapping[str, Tensor] | None) -> Any:
    return net(images) if weights is None else torch.func.functional_call(net, dict(weights), (images,))
