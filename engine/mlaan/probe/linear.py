"""A linear classifier on frozen features."""

import warnings
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

L2 = 1e-4
"""Penalty on the weights: L2 / 2 times their squared sum, beside the mean cross-entropy."""

_TOLERANCE = 1e-6
_ITERATIONS = 2000


class LinearProbe(NamedTuple):
    """Multinomial logistic regression on standardised features.

    Attributes:
        weight: (C, classes) float64, for features less their mean, over their deviation.
        bias: (classes,) float64.
        mean, scale: (C,) float64, of the features that it was fitted on; a feature that never varies has scale 1.
    """

    weight: Tensor
    bias: Tensor
    mean: Tensor
    scale: Tensor

    def logits(self, features: Tensor) -> Tensor:
        """(N, classes) float64 of features (N, C)."""
        return (features.double() - self.mean) / self.scale @ self.weight + self.bias

    def top1(self, features: Tensor, labels: Tensor) -> float:
        """Share, 0 to 1, of right answers for features (N, C) and labels (N,)."""
        return (self.logits(features).argmax(1) == labels).double().mean().item()


def fit(features: Tensor, labels: Tensor, classes: int, l2: float = L2) -> LinearProbe:
    """The minimum of mean cross-entropy + l2 / 2 · ||weight||², which is one point, found from zero by L-BFGS.

    The penalty makes the problem strictly convex in the weights and float64 makes the end independent of the way, so
    the result is the same at every call. scikit-learn's LogisticRegression on the same standardised features has
    C = 1 / (l2 · N).

    Args:
        features: (N, C) of any float dtype, on the device to compute on.
        labels: (N,) int64, 0 to classes - 1; a class may be missing.

    Warns:
        RuntimeWarning: the minimum was not reached to 1e-6 in the gradient.
    """
    shifted = features.double() - features[0].double()  # exact zeros where a feature never varies
    deviation = shifted.std(0, correction=0)
    scale = torch.where(deviation > 0, deviation, 1.0)
    mean = features[0].double() + shifted.mean(0)
    x = (shifted - shifted.mean(0)) / scale
    # One tensor for both, as L-BFGS sees one vector: the last row is the bias.
    solution = torch.zeros(x.shape[1] + 1, classes, dtype=torch.float64, device=x.device, requires_grad=True)
    solver = torch.optim.LBFGS(
        [solution],
        max_iter=_ITERATIONS,
        max_eval=2 * _ITERATIONS,
        tolerance_grad=_TOLERANCE,
        tolerance_change=0,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        weight, bias = solution[:-1], solution[-1]
        value = F.cross_entropy(x @ weight + bias, labels) + l2 / 2 * weight.square().sum()
        (solution.grad,) = torch.autograd.grad(value, [solution])
        return value.detach()

    with torch.enable_grad():
        solver.step(loss)  # type: ignore[arg-type]
        loss()
    assert solution.grad is not None
    left = solution.grad.abs().max().item()
    if left > _TOLERANCE:
        warnings.warn(
            f"a linear probe ended with a gradient of {left:.1e}, not below {_TOLERANCE:.0e}: its accuracy may be low",
            RuntimeWarning,
            stacklevel=2,
        )
    weight, bias = solution.detach()[:-1], solution.detach()[-1]
    return LinearProbe(weight, bias, mean, scale)
