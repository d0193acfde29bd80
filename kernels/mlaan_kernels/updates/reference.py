"""Updates in plain PyTorch, on any device: the judge in tests, and the fallback without libraries."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mlaan_kernels.updates.arguments import Update


class Element(NamedTuple):
    """One tensor as a rule sees it, in the precision of the weight."""

    weight: Tensor
    grad: Tensor  # unscaled
    states: Sequence[Tensor]
    excluded: bool


Rule = Callable[[Element], tuple[Tensor, Sequence[Tensor]]]
"""From one tensor to its new weight and its new states."""


def run(update: Update, rule: Rule) -> Tensor | None:
    """Twins, then `rule` for every tensor, then rounding; all of it or, at a bad gradient, nothing."""
    update.check()
    finite = update.finite if update.finite is None else update.finite.reshape(())
    if update.check_finite:
        found = torch.stack([grad.isfinite().all() for grad in update.grads]).all()
        finite = found if finite is None else finite & found

    def put(target: Tensor, value: Tensor) -> None:
        # A choice per element instead of a branch: nothing has to wait for the device.
        target.copy_(value if finite is None else torch.where(finite, value.to(target.dtype), target))

    for twin in update.twins:
        put(twin.tensor, twin.keep * twin.tensor + (1 - twin.keep) * update.weights[twin.param])
    for index, weight in enumerate(update.weights):
        factor = update.inverse_scale
        if update.grad_scale is not None:
            factor = update.grad_scale.reshape(()).to(weight.dtype) * factor
        states = [tensors[index] for tensors in update.states.values()] if update.uses_states else []
        excluded = bool(update.excluded) and update.excluded[index]
        moved, new_states = rule(Element(weight, update.grads[index].to(weight.dtype) * factor, states, excluded))
        for state, new in zip(states, new_states, strict=True):
            put(state, new)
        put(weight, moved)
        if update.masters:
            put(update.params[index], moved)
    return None if finite is None else (~finite).to(torch.int32)


def number(value: float | Tensor, weight: Tensor) -> float | Tensor:
    """A learning rate or step that may come as a tensor, as a factor of `weight`."""
    return value.reshape(()).to(weight.dtype) if isinstance(value, Tensor) else value


def direction(
    element: Element, betas: tuple[float, float], epsilon: float, step: float | Tensor
) -> tuple[Tensor, list[Tensor]]:
    """Adam's step before the learning rate, and the new moments."""
    if isinstance(step, Tensor):
        step = step.reshape(()).double()
    first = betas[0] * element.states[0] + (1 - betas[0]) * element.grad
    second = betas[1] * element.states[1] + (1 - betas[1]) * element.grad.square()
    corrections = [1 - beta**step for beta in betas]
    root = (second / corrections[1]).sqrt()
    return first / corrections[0] / (root + epsilon), [first, second]


def norm(tensor: Tensor) -> Tensor:
    """The Euclidean norm, summed in float64."""
    return torch.linalg.vector_norm(tensor, dtype=torch.float64)
