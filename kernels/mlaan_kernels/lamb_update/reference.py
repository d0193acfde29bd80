"""The update in plain PyTorch, on any device: the judge in tests, and the fallback without libraries."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mlaan_kernels.updates import reference
from mlaan_kernels.updates.arguments import Update
from mlaan_kernels.updates.reference import Element, direction, norm, number


def lamb_update(update: Update, *, betas: tuple[float, float], epsilon: float, weight_decay: float) -> Tensor | None:
    """See `mlaan_kernels.lamb_update.lamb_update`; to be called without gradient mode."""

    def rule(element: Element) -> tuple[Tensor, Sequence[Tensor]]:
        weight = element.weight
        step, states = direction(element, betas, epsilon, update.step)
        if not element.excluded:
            step = step + weight_decay * weight
            lengths = norm(weight), norm(step)
            step = step * torch.where((lengths[0] > 0) & (lengths[1] > 0), lengths[0] / lengths[1], 1.0)
        return weight - number(update.learning_rate, weight) * step, states

    return reference.run(update, rule)
