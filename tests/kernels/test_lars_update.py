"""LARS against its paper's algorithm, one element at a time; what it shares with other rules is in test_updates.py."""

import math

import pytest
import torch

from kernels.sgd_cases import assert_close, devices, forms
from kernels.update_cases import RULES, make_case

pytestmark = pytest.mark.usefixtures("native")
SHAPES = [(3,), (17,), (2, 3, 3), (1,), (2100,), (0,)]


def paper(weight: list, grad: list, momentum: list, rate: float, excluded: bool, m: float, decay: float, eta: float):
    """Algorithm 1 of You, Gitman and Ginsburg (2017) with the local rate of its equation (6), in Python's floats."""
    local, beta = 1.0, 0.0
    if not excluded:
        beta = decay
        w, g = math.sqrt(math.fsum(x * x for x in weight)), math.sqrt(math.fsum(x * x for x in grad))
        local = eta * w / (g + beta * w)
    momentum[:] = [m * v + rate * local * (g + beta * w) for v, g, w in zip(momentum, grad, weight, strict=True)]
    weight[:] = [w - v for w, v in zip(weight, momentum, strict=True)]


@devices
@forms
@pytest.mark.parametrize(("m", "decay"), [(0.9, 0.01), (0.0, 0.01), (0.9, 0.0)])
def test_equals_the_paper(device: str, implementation: str, m: float, decay: float) -> None:
    case = make_case(RULES["lars"], SHAPES, torch.float64, device, twin_counts=(0,))
    weights = [param.flatten().tolist() for param in case.params]
    momenta = [momentum.flatten().tolist() for momentum in case.states[0]]
    if m == 0:
        momenta = [[0.0] * len(momentum) for momentum in momenta]
    for step in range(4):
        rate = 0.5 / (1 + step)
        case.grads = make_case(case.rule, SHAPES, torch.float64, device, seed=step).grads
        for index, grad in enumerate(case.grads):
            flat = (grad * 0.25).flatten().tolist()
            if flat:
                paper(weights[index], flat, momenta[index], rate, case.excluded[index], m, decay, 0.02)
        case(implementation, learning_rate=rate, momentum=m, weight_decay=decay, trust=0.02, inverse_scale=0.25)
    for param, weight in zip(case.params, weights, strict=True):
        assert_close([param.flatten().cpu()], [torch.tensor(weight, dtype=torch.float64)])


@devices
@forms
def test_momenta_may_be_left_out_without_momentum(device: str, implementation: str) -> None:
    case = make_case(RULES["lars-plain"], [(5,), (4, 2)], device=device)
    other = make_case(RULES["lars-plain"], [(5,), (4, 2)], device=device)
    case.states = [[]]
    case(implementation)
    other(implementation)
    assert_close(case.params, other.params)


@devices
@forms
@pytest.mark.parametrize("zero", ["weight", "grad"])
def test_a_norm_of_zero_means_a_ratio_of_one(device: str, implementation: str, zero: str) -> None:
    case = make_case(RULES["lars"], [(9,)], torch.float64, device, twin_counts=(0,))
    (case.params if zero == "weight" else case.grads)[0].zero_()
    case.states[0][0].zero_()
    expected = case.params[0] - 0.5 * (case.grads[0] + 0.01 * case.params[0])
    case(implementation, learning_rate=0.5)
    assert_close(case.params, [expected])


@devices
@forms
def test_norms_beyond_the_range_of_float32_squares(device: str, implementation: str) -> None:
    """|w| = |g| = 3e25: the squares overflow a float32, the ratio must not."""
    case = make_case(RULES["lars"], [(9,)], device=device, twin_counts=(0,))
    for tensor in (case.params[0], case.grads[0]):
        tensor.fill_(1e25)
    case.states[0][0].zero_()
    case(implementation, learning_rate=1.0, weight_decay=0.0, trust=0.25)
    assert_close([case.params[0] / 1e25], [torch.full((9,), 0.75, device=device)])
