"""The updates' manners, each rule in turn: refusals, autograd, fake tensors, CUDA graphs and launches."""

import copy
from functools import partial
from typing import Any

import pytest
import torch

from kernels.sgd_cases import assert_close, assert_same, devices, forms, kernels_launched
from kernels.update_cases import ADAM, RULES, Case, Rule, make_case, rules
from mlaan_kernels.updates.native import operator

pytestmark = pytest.mark.usefixtures("native")
on_gpu = pytest.mark.parametrize("device", [pytest.param("cuda", marks=pytest.mark.gpu)])


@forms
@rules
def test_nothing_to_update(implementation: str, rule: Rule) -> None:
    nothing = make_case(rule, [])
    assert nothing(implementation) is None
    for case in (nothing, make_case(rule, [(0,), (2, 0)])):
        for finite, expected in ((None, 0), (torch.tensor(True), 0), (torch.tensor([False]), 1)):
            skipped = case(implementation, check_finite=True, finite=finite)
            assert skipped is not None
            assert skipped.shape == ()
            assert skipped.item() == expected


MISFITS: dict[str, dict[str, Any]] = {
    r"masters has 1 tensors, params has 2": {"masters": [torch.zeros(5)]},
    r"params\[0\] is torch.float32: only bfloat16": {"masters": [torch.zeros(5), torch.zeros(6, 3)]},
    r"grad_scale is torch.float64 of shape \(1,\)": {"grad_scale": torch.ones(1).double()},
    r"grad_scale is torch.float32 of shape \(2,\)": {"grad_scale": torch.ones(2)},
    r"finite is torch.int32 of shape \(\)": {"finite": torch.tensor(1, dtype=torch.int32)},
    r"learning_rate is torch.int64": {"learning_rate": torch.tensor(1)},
}


@forms
@rules
@pytest.mark.parametrize("message", MISFITS)
def test_misfits_are_named_and_nothing_is_written(implementation: str, rule: Rule, message: str) -> None:
    case = make_case(rule, [(5,), (6, 3)])
    refused(case, implementation, message, **MISFITS[message])


@on_gpu
@forms
def test_numbers_on_another_device_are_named(device: str, implementation: str) -> None:
    case = make_case(RULES["sgd"], [(5,), (6, 3)], device=device)
    refused(case, implementation, r"grad_scale has device cpu", grad_scale=torch.ones(1))
    refused(case, implementation, r"learning_rate has device cpu", learning_rate=torch.ones(1))


@forms
@pytest.mark.parametrize("message", [r"masters\[0\] is torch.float64", r"masters\[1\] has strides"])
def test_masters_that_do_not_fit(implementation: str, message: str) -> None:
    case = make_case(RULES["adamw"], [(5,), (6, 3)], masters=True)
    if "float64" in message:
        case.masters[0] = case.masters[0].double()
    else:
        case.masters[1] = case.masters[1].mT.contiguous().mT
    refused(case, implementation, message)


@forms
@pytest.mark.parametrize("name", ["lars", "lamb"])
def test_too_few_exclusions(implementation: str, name: str) -> None:
    case = make_case(RULES[name], [(5,), (6, 3)])
    refused(case, implementation, r"excluded has 1 entries, params has 2", excluded=[True])


@forms
@pytest.mark.parametrize("name", ["adamw", "lamb"])
def test_states_and_steps_that_do_not_fit(implementation: str, name: str) -> None:
    case = make_case(RULES[name], [(5,), (6, 3)])
    refused(case, implementation, r"step is torch.float64", step=torch.ones(1).double())
    case.states[1][0] = case.states[1][0].double()
    refused(case, implementation, r"second_moments\[0\] has dtype torch.float64")
    case.states[1].pop()
    refused(case, implementation, r"second_moments has 1 tensors")


def refused(case: Case, implementation: str, message: str, **arguments: Any) -> None:
    before = [tensor.clone() for tensor in [*case.params, *case.written()]]
    with pytest.raises(ValueError, match=message):
        case(implementation, check_finite=True, **arguments)
    assert_same([*case.params, *case.written()], before)


@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        ("adamw", {"betas": (1.0, 0.9)}),
        ("adamw", {"betas": (0.9, -0.1)}),
        ("adamw", {"epsilon": -1e-8}),
        ("lamb", {"step": 0}),
        ("lars", {"momentum": -0.5}),
        ("lars", {"trust": float("nan")}),
        ("lars", {"weight_decay": -1e-4}),
    ],
    ids=str,
)
def test_numbers_that_make_no_sense(name: str, numbers: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(numbers))):
        make_case(RULES[name], [(2,)])("auto", **numbers)


@devices
@forms
@rules
def test_a_backward_that_needs_the_old_weight_raises(device: str, implementation: str, rule: Rule) -> None:
    case = make_case(rule, [(3,)], device=device, masters=True)
    weight = case.params[0].requires_grad_()
    inputs = torch.ones(3, device=device, requires_grad=True)
    loss = (weight * inputs).sum()
    case(implementation)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


NUMBERS = {
    "sgd": (0.9, True, 1e-4),
    "adamw": (*ADAM["betas"], 1e-8, 1e-4),
    "lars": (0.9, 1e-4, 0.1),
    "lamb": (*ADAM["betas"], 1e-8, 1e-4),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_the_operators_keep_their_promises_to_torch(name: str) -> None:
    """Their schemas name everything they write, and they pass through fake tensors and tracing."""
    case = make_case(RULES[name], [(3,), (4, 5)], masters=True)
    case("native")
    first, second = (*case.states, [])[:2]
    lists = (case.params, case.grads, case.masters, first, second, [twin.tensor for twin in case.twins])
    twins = ([twin.param for twin in case.twins], [twin.keep for twin in case.twins])
    dials = (0.0, torch.tensor(0.1), 0.0, torch.tensor(3.0), 1.0, torch.tensor(0.5))
    flags = (True, torch.tensor(True), torch.empty((), dtype=torch.int32))
    arguments = (*lists, *twins, [0, 1], *dials, *flags, *NUMBERS[name])
    torch.library.opcheck(operator(f"{name}_update"), arguments)


@on_gpu
@rules
def test_numbers_may_change_under_a_cuda_graph(device: str, rule: Rule) -> None:
    case = make_case(rule, [(5000,), (6, 3)], device=device, masters=True)
    expected = copy.deepcopy(case)
    rate, step, scale = (torch.tensor(value, device=device) for value in (0.1, 0.0, 1.0))
    arguments: dict[str, Any] = {"learning_rate": rate, "grad_scale": scale, "check_finite": True}
    copy.deepcopy(case)("native", step, **arguments)  # loads the library and its kernels outside the capture
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        case("native", step, **arguments)
    for index in range(1, 4):
        rate.fill_(0.1 / index)
        step.fill_(index)
        scale.fill_(0.5 * index)
        graph.replay()
        expected("reference", index, learning_rate=0.1 / index, grad_scale=scale)
    assert_close(case.written(), expected.written())


@on_gpu
@rules
def test_launches(device: str, rule: Rule) -> None:
    """One, and one more where gradients are checked or norms wanted, for 400 tensors."""
    case = make_case(rule, [(64,)] * 400, device=device, twin_counts=(1,))
    case("native", check_finite=True)
    for check_finite in (False, True):
        kernels = kernels_launched(partial(case, "native", check_finite=check_finite))
        assert len(kernels) == 1 + (check_finite or rule.norms), kernels
