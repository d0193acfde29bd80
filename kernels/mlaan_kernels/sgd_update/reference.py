"""The update in plain PyTorch, on any device: the judge in tests, and the fallback without libraries."""

from collections.abc import Sequence

from torch import Tensor

from mlaan_kernels.updates import reference
from mlaan_kernels.updates.arguments import Update
from mlaan_kernels.updates.reference import Element, number


def sgd_update(update: Update, *, momentum: float, nesterov: bool, weight_decay: float) -> Tensor | None:
    """See `mlaan_kernels.sgd_update.sgd_update`; to be called without gradient mode."""

    def rule(element: Element) -> tuple[Tensor, Sequence[Tensor]]:
        step = element.grad + weight_decay * element.weight
        states = []
        if momentum != 0:
            moved = momentum * element.states[0] + step
            step = step + momentum * moved if nesterov else moved
            states = [moved]
        return element.weight - number(update.learning_rate, element.weight) * step, states

    return reference.run(update, rule)
