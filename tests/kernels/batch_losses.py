"""What the tests of the losses on whole batches share."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from kernels.forms import assert_near

CLASSES = 5
LABELS = {
    "random": [3, 0, 3, 1, 0, 3, 1, 0],
    "one_member": [2, 0, 0, 1, 1, 0, 1, 0],  # class 2
    "one_class": [4] * 6,
    "all_different": [0, 1, 2, 3, 4],
    "pair": [1, 1],
    "one_image": [3],
}
every_batch = pytest.mark.parametrize("labels", [torch.tensor(v) for v in LABELS.values()], ids=list(LABELS))

UPSTREAM = 300.0
"""Comes into the backward, as a loss scale would: gradients stay clear of float16's smallest numbers."""


def value_and_gradient(loss: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    value = loss(x)
    (gradient,) = torch.autograd.grad(UPSTREAM * value, [x])
    assert value.shape == ()
    assert gradient.dtype == x.dtype
    return value.detach(), gradient


def assert_same(
    loss: Callable[[Tensor], Tensor],
    judge: Callable[[Tensor], Tensor],
    x: Tensor,
    tolerance: float,
    loss_tolerance: float = 1e-5,
) -> None:
    """Value and gradient of `loss` at x are those of `judge` in float64, the gradient up to `tolerance`.

    The loss is float32 at least; the gradient is rounded to x's dtype.
    """
    value, gradient = value_and_gradient(loss, x)
    assert value.dtype == torch.promote_types(x.dtype, torch.float32)
    wanted_value, wanted_gradient = value_and_gradient(judge, x.double().cpu())
    assert_near(value, _clean(wanted_value), min(tolerance, loss_tolerance), "value")
    assert_near(gradient, _clean(wanted_gradient), tolerance, "gradient")


def _clean(wanted: Tensor) -> Tensor:
    """What is rounding alone in float64 is 0."""
    return wanted if wanted.norm() > 1e-9 else torch.zeros_like(wanted)
