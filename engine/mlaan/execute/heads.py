"""Auxiliary networks with their losses, forward and backward in one go."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mlaan.execute.module import Autocast
from mlaan.learning import LocalLoss, PoolLinear, logits_of
from mlaan.models import borrowed
from mlaan_kernels.blocks import Cotangent


class HeadResult(NamedTuple):
    """The unweighted loss (0-dim), the number of right answers (0-dim int64), the cotangent at the output.

    A head that gives no logits has no right answers: 0.
    """

    loss: Tensor
    correct: Tensor
    cotangent: Cotangent


def run_heads(
    losses: Sequence[LocalLoss],
    outputs: Sequence[Tensor],
    images: Tensor,
    labels: Tensor,
    autocast: Autocast = nullcontext,
    scale: Tensor | None = None,
) -> list[HeadResult]:
    """Losses that share one auxiliary network, in one call on their modules' outputs joined along the batch.

    Batch statistics are each module's own, so this is the same function as one call for each. The weights'
    gradients go to `.grad`.

    Args:
        losses: all with the same head.
        outputs: (N, ...) of the tapped modules, detached, all of one shape once they are pooled.
        images: (N, C, H, W).
        labels: (N,) int64, or (N, classes) probabilities.
        autocast: the precision of the head; losses are computed in float32 or float64.
        scale: 0-dim, the factor of the cotangents that come back; the weights' gradients are without it.
    """
    head: Any = losses[0].head
    weights = [p for p in head.parameters() if p.requires_grad]
    pooling = isinstance(head, PoolLinear)
    features = [head.pool(output) if pooling else output.detach() for output in outputs]
    count = len(losses)
    with torch.enable_grad():
        z = (torch.cat(features) if count > 1 else features[0]).requires_grad_()
        with autocast(), statistics_of_slices(head, count) if count > 1 else nullcontext():
            joined = head.classify(z) if pooling else head(z)
        parts = [_slice(joined, i, count) for i in range(count)]
        values = [loss.criterion(part, images, labels) for loss, part in zip(losses, parts, strict=True)]
        total = losses[0].weight * values[0]
        for loss, value in zip(losses[1:], values[1:], strict=True):
            total = total + loss.weight * value
        scaled = total if scale is None else total * scale
        dz, *grads = torch.autograd.grad(scaled, [z, *weights], allow_unused=True)
    for weight, grad in zip(weights, grads, strict=True):
        accumulate(weight, grad if grad is None or scale is None else grad / scale)
    dz = torch.zeros_like(z) if dz is None else dz
    cotangents = [Cotangent(pooled=d) if pooling else Cotangent(dense=d) for d in dz.chunk(count)]
    correct = [_right_answers(part, labels) for part in parts]
    return [HeadResult(v.detach(), c, g) for v, c, g in zip(values, correct, cotangents, strict=True)]


def accumulate(weight: nn.Parameter, grad: Tensor | None) -> None:
    """Add a gradient to `.grad`, in the weight's dtype."""
    if grad is not None:
        grad = grad.to(weight.dtype)
        weight.grad = grad if weight.grad is None else weight.grad + grad


@contextmanager
def statistics_of_slices(head: nn.Module, count: int) -> Iterator[None]:
    """Inside the block every BatchNorm that `head` runs treats its batch as `count` batches, one after the other."""
    parts = nn.ModuleList([head, *borrowed(head)])
    norms: list[Any] = [module for module in parts.modules() if isinstance(module, _BatchNorm)]
    for norm in norms:
        usual = norm.forward

        def forward(x: Tensor, usual: Any = usual) -> Tensor:
            return torch.cat([usual(part) for part in x.chunk(count)])

        norm.forward = forward
    try:
        yield
    finally:
        for norm in norms:
            del norm.forward


def _slice(output: Any, place: int, count: int) -> Any:
    """A module's part of a head's joined output, in float32 at least."""
    if isinstance(output, Tensor):
        part = output.chunk(count)[place] if count > 1 else output
        return part.float() if part.dtype in (torch.bfloat16, torch.float16) else part
    return type(output)(*(field if field is None else _slice(field, place, count) for field in output))


def _right_answers(output: Any, labels: Tensor) -> Tensor:
    logits = logits_of(output)
    classes = labels.argmax(1) if labels.ndim == 2 else labels
    return classes.new_zeros(()) if logits is None else (logits.detach().argmax(1) == classes).sum()
