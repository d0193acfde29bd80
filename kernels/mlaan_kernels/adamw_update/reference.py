"""The update in plain PyTorch, on any device: the judge in tests, and the fallback without libraries."""

from collections.abc import Sequence

from torch import Tensor

from mlaan_kernels.updates import reference
from mlaan_kernels.updates.arguments import Update
from mlaan_kernels.updates.reference import Element, direction, number


def adamw_update(update: Update, *, betas: tuple[float, float], epsilon: float, weight_decay: float) -> Tensor | None:
    """See `mlaan_kernels.adamw_update.adamw_update`; to be called without gradient mode."""

    def rule(element: Element) -> tuple[Tensor, Sequence[Tensor]]:
        rate = number(update.learning_rate, element.weight)
        step, states = direction(element, betas, epsilon, update.step)
        return element.weight - rate * weight_decay * element.weight - rate * step, states

    return reference.run(update, rule)
