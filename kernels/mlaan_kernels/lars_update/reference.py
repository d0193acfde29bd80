"""The update in plain PyTorch, on any device: the judge in tests, and the fallback without libraries."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mlaan_kernels.updates import reference
from mlaan_kernels.updates.arguments import Update
from mlaan_kernels.updates.reference import Element, norm, number


def lars_update(update: Update, *, momentum: float, weight_decay: float, trust: float) -> Tensor | None:
    """See `mlaan_kernels.lars_update.lars_update`; to be called without gradient mode."""

    def rule(element: Element) -> tuple[Tensor, Sequence[Tensor]]:
        weight, grad = element.weight, element.grad
        decay = 0.0 if element.excluded else weight_decay
        step = number(update.learning_rate, weight) * (grad + decay * weight)
        if not element.excluded:
            lengths = norm(weight), norm(grad)
            ratio = trust * lengths[0] / (lengths[1] + decay * lengths[0])
            step = step * torch.where((lengths[0] > 0) & (lengths[1] > 0), ratio, 1.0)
        if momentum == 0:
            return weight - step, []
        moved = momentum * element.states[0] + step
        return weight - moved, [moved]

    return reference.run(update, rule)
