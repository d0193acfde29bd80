"""What the tests of all updates share: each rule with its numbers, inputs for it, and independent forms of it."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from kernels.sgd_cases import assert_close, assert_same
from mlaan_kernels.adamw_update import adamw_update
from mlaan_kernels.lamb_update import lamb_update
from mlaan_kernels.lars_update import lars_update
from mlaan_kernels.sgd_update import Twin, sgd_update

ADAM = {"betas": (0.9, 0.98), "epsilon": 1e-6, "weight_decay": 0.05}


@dataclass(frozen=True)
class Rule:
    """An operator with numbers for it. `states`: lists it keeps; `steps`: it counts; `norms`: it has ratios."""

    update: Callable[..., Tensor | None]
    numbers: dict[str, Any]
    states: int = 1
    steps: bool = False
    norms: bool = False


RULES = {
    "sgd": Rule(sgd_update, {"momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}),
    "adamw": Rule(adamw_update, ADAM, states=2, steps=True),
    "lars": Rule(lars_update, {"momentum": 0.9, "weight_decay": 0.01, "trust": 0.02}, norms=True),
    "lars-plain": Rule(lars_update, {"momentum": 0.0, "weight_decay": 0.0, "trust": 0.02}, norms=True),
    "lamb": Rule(lamb_update, ADAM, states=2, steps=True, norms=True),
}
rules = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
GRAD_DTYPES = [torch.float32, torch.bfloat16, torch.float16]
grad_dtypes = pytest.mark.parametrize("grad_dtype", GRAD_DTYPES, ids=["f32", "bf16", "f16"])


@dataclass
class Case:
    """What one update reads and writes."""

    rule: Rule
    params: list[Tensor]
    grads: list[Tensor]
    states: list[list[Tensor]]
    twins: list[Twin]
    masters: list[Tensor]
    excluded: list[bool]

    def written(self) -> list[Tensor]:
        states = [tensor for tensors in self.states for tensor in tensors]
        return [*self.weights, *states, *(twin.tensor for twin in self.twins)]

    @property
    def weights(self) -> list[Tensor]:
        return self.masters or self.params

    def mapped(self, change: Callable[[Tensor], Tensor], grads: Callable[[Tensor], Tensor] | None = None) -> "Case":
        """Every tensor, the gradients apart, through `change`."""
        return replace(
            self,
            params=[change(tensor) for tensor in self.params],
            grads=[(grads or change)(tensor) for tensor in self.grads],
            states=[[change(tensor) for tensor in tensors] for tensors in self.states],
            twins=[twin._replace(tensor=change(twin.tensor)) for twin in self.twins],
            masters=[change(tensor) for tensor in self.masters],
        )

    def __call__(self, implementation: str, step: float | Tensor = 1, **arguments: Any) -> Tensor | None:
        """One update with the case's numbers; `arguments` beat them."""
        if self.rule.steps:
            arguments = {"step": step, **arguments}
        if self.rule.norms:
            arguments = {"excluded": self.excluded, **arguments}
        arguments = {"learning_rate": 0.1, "masters": self.masters, **self.rule.numbers, **arguments}
        return self.rule.update(
            self.params, self.grads, *self.states, self.twins, **arguments, implementation=implementation
        )


def make_case(
    rule: Rule,
    shapes: Sequence[tuple[int, ...]],
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    grad_dtype: torch.dtype | None = None,
    masters: bool = False,
    twin_counts: Sequence[int] = (0, 1, 3),
    seed: int = 0,
) -> Case:
    """Normal numbers, half of the tensors excluded; second moments are positive from the start."""
    generator = torch.Generator().manual_seed(seed)

    def draw(shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)

    weights = [draw(shape) for shape in shapes]
    states = [[draw(shape) * 0.1 for shape in shapes], [draw(shape).square() for shape in shapes]]
    counts = [twin_counts[index % len(twin_counts)] for index in range(len(shapes))]
    twins = [Twin(index, draw(shapes[index]), 0.9 + 0.03 * k) for index, n in enumerate(counts) for k in range(n)]
    return Case(
        rule,
        [weight.bfloat16() for weight in weights] if masters else weights,
        [draw(shape).to(grad_dtype or dtype) for shape in shapes],
        states[: rule.states],
        twins[::-1],
        weights if masters else [],
        [index % 2 == 1 for index in range(len(shapes))],
    )


def assert_native_is_reference(case: Case, steps: int = 3, **arguments: Any) -> None:
    """Runs both forms on equal inputs; the gradients must come out untouched, masters must meet their parameters."""
    other = copy.deepcopy(case)
    grads = [grad.clone() for grad in case.grads]
    for step in range(1, steps + 1):
        native = case("native", step, **arguments)
        reference = other("reference", step, **arguments)
        assert (native is None) == (reference is None)
        if native is not None and reference is not None:
            assert native.dtype == reference.dtype == torch.int32
            assert native.shape == reference.shape == ()
            assert native.item() == reference.item()
    assert_close(case.written(), other.written())
    assert_same(case.grads, grads)
    for form in (case, other):
        if form.masters:
            assert_same(form.params, [master.bfloat16() for master in form.masters])
