"""LAMB against its paper's algorithm, one element at a time; what it shares with other rules is in test_updates.py."""

import math

import pytest
import torch

from kernels.sgd_cases import assert_close, devices, forms
from kernels.update_cases import RULES, make_case

pytestmark = pytest.mark.usefixtures("native")
SHAPES = [(3,), (17,), (2, 3, 3), (1,), (2100,), (0,)]
BETAS, EPSILON, DECAY = (0.9, 0.98), 1e-6, 0.05


def paper(weight: list, grad: list, first: list, second: list, step: int, rate: float, excluded: bool) -> None:
    """Algorithm 2 of You et al. (2020), phi the identity, in Python's floats."""
    moves = []
    for i, g in enumerate(grad):
        first[i] = BETAS[0] * first[i] + (1 - BETAS[0]) * g
        second[i] = BETAS[1] * second[i] + (1 - BETAS[1]) * g * g
        mean, square = first[i] / (1 - BETAS[0] ** step), second[i] / (1 - BETAS[1] ** step)
        moves.append(mean / (math.sqrt(square) + EPSILON) + (0.0 if excluded else DECAY * weight[i]))
    ratio = 1.0
    if not excluded:
        ratio = math.sqrt(math.fsum(w * w for w in weight)) / math.sqrt(math.fsum(r * r for r in moves))
    weight[:] = [w - rate * ratio * r for w, r in zip(weight, moves, strict=True)]


@devices
@forms
@pytest.mark.parametrize("on_device", [False, True], ids=["number", "tensor"])
def test_equals_the_paper(device: str, implementation: str, on_device: bool) -> None:
    case = make_case(RULES["lamb"], SHAPES, torch.float64, device, twin_counts=(0,))
    weights, first, second = (
        [tensor.flatten().tolist() for tensor in tensors] for tensors in (case.params, *case.states)
    )
    for step in range(1, 6):
        case.grads = make_case(case.rule, SHAPES, torch.float64, device, seed=step).grads
        for index, grad in enumerate(case.grads):
            flat = (grad * 0.25).flatten().tolist()
            if flat:
                paper(weights[index], flat, first[index], second[index], step, 0.1, case.excluded[index])
        count = torch.full((1,), float(step), device=device) if on_device else step
        case(implementation, count, inverse_scale=0.25)
    for param, weight in zip(case.params, weights, strict=True):
        assert_close([param.flatten().cpu()], [torch.tensor(weight, dtype=torch.float64)])


@devices
@forms
def test_a_step_is_as_long_as_rate_times_weight(device: str, implementation: str) -> None:
    case = make_case(RULES["lamb"], [(50,), (7, 300)], torch.float64, device, twin_counts=(0,))
    before = [param.clone() for param in case.params]
    case(implementation, learning_rate=0.125, excluded=[])
    for param, old in zip(case.params, before, strict=True):
        assert (param - old).norm().item() == pytest.approx(0.125 * old.norm().item(), rel=1e-12)


@devices
@forms
def test_a_weight_of_zero_takes_adams_step(device: str, implementation: str) -> None:
    case = make_case(RULES["lamb"], [(9,)], torch.float64, device, twin_counts=(0,))
    case.params[0].zero_()
    for tensors in case.states:
        tensors[0].zero_()
    case(implementation, learning_rate=0.5, epsilon=0.0)
    assert_close(case.params, [-0.5 * case.grads[0].sign()])


@devices
@forms
def test_nothing_moves_where_all_is_zero(device: str, implementation: str) -> None:
    case = make_case(RULES["lamb"], [(9,)], device=device, twin_counts=(0,))
    for tensors in (case.grads, *case.states):
        tensors[0].zero_()
    before = case.params[0].clone()
    case(implementation, weight_decay=0.0)
    assert_close(case.params, [before])
