"""What all updates promise alike, each rule in turn; their own maths is in the tests of the rules."""

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels.sgd_cases import SIZES, assert_close, assert_same, devices, dtypes, forms
from kernels.update_cases import RULES, Rule, assert_native_is_reference, grad_dtypes, make_case, rules

pytestmark = pytest.mark.usefixtures("native")


def one(value: float, device: str) -> Tensor:
    return torch.tensor([value], device=device)


@devices
@dtypes
@rules
def test_native_equals_reference(device: str, dtype: torch.dtype, rule: Rule) -> None:
    case = make_case(rule, SIZES, dtype, device)
    assert_native_is_reference(case, inverse_scale=0.25, grad_scale=one(0.7, device), check_finite=True)


@devices
@grad_dtypes
@pytest.mark.parametrize("masters", [False, True], ids=["f32", "masters"])
@rules
def test_gradients_and_weights_of_lower_precision(
    device: str, grad_dtype: torch.dtype, masters: bool, rule: Rule
) -> None:
    case = make_case(rule, SIZES, device=device, grad_dtype=grad_dtype, masters=masters)
    assert_native_is_reference(case, inverse_scale=0.5, check_finite=True)


@devices
@forms
@rules
def test_masters_move_like_float32_parameters(device: str, implementation: str, rule: Rule) -> None:
    """Weights, states and twins to the bit, whatever the rounded parameter held."""
    case = make_case(rule, SIZES, device=device, masters=True)
    plain = copy.deepcopy(case)
    plain.params, plain.masters = plain.masters, []
    for param in case.params:
        param.fill_(float("nan"))
    for step in (1, 2):
        case(implementation, step)
        plain(implementation, step)
    assert_same(case.written(), plain.written())
    assert_same(case.params, [weight.bfloat16() for weight in plain.params])


@devices
@forms
def test_masters_round_to_nearest_even(device: str, implementation: str) -> None:
    below, tie_down, tie_up, above = 1 + 2**-9, 1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20
    masters = torch.tensor([below, tie_down, tie_up, above, -tie_up] * 3, device=device)
    case = make_case(RULES["sgd"], [(15,)], device=device, masters=True, twin_counts=(0,))
    case.masters[0].copy_(masters)
    case(implementation, learning_rate=0.0)
    expected = [1.0, 1.0, 1 + 2**-6, 1 + 2**-7, -1 - 2**-6] * 3
    assert case.params[0].tolist() == expected


@devices
@forms
@rules
@pytest.mark.parametrize("masters", [False, True], ids=["f32", "masters"])
@pytest.mark.parametrize("how", ["inf", "nan", "flag", "both"])
def test_what_is_not_finite_skips_everything(
    device: str, implementation: str, rule: Rule, masters: bool, how: str
) -> None:
    case = make_case(rule, SIZES, device=device, masters=masters)
    arguments: dict[str, Any] = {"check_finite": how != "flag"}
    if how == "flag":
        arguments["finite"] = torch.tensor(False, device=device)
    else:
        case.grads[4][-1] = float("nan" if how == "nan" else "inf")
        if how == "both":
            arguments["finite"] = torch.tensor([True], device=device)
    before = [tensor.clone() for tensor in [*case.params, *case.written()]]
    skipped = case(implementation, **arguments)
    assert skipped is not None
    assert skipped.shape == ()
    assert skipped.item() == 1
    assert_same([*case.params, *case.written()], before)


@devices
@forms
@rules
def test_a_true_flag_changes_nothing_but_is_answered(device: str, implementation: str, rule: Rule) -> None:
    case = make_case(rule, SIZES, device=device)
    other = copy.deepcopy(case)
    skipped = case(implementation, finite=torch.tensor(True, device=device))
    assert skipped is not None
    assert skipped.item() == 0
    assert other(implementation) is None
    assert_same(case.written(), other.written())


@devices
@forms
@dtypes
@rules
def test_numbers_on_the_device(device: str, implementation: str, dtype: torch.dtype, rule: Rule) -> None:
    """Values that float32 holds exactly: as tensors they must do what they do as numbers."""
    case = make_case(rule, SIZES, dtype, device)
    other = copy.deepcopy(case)
    scaled = [grad * 0.5 for grad in other.grads]
    for step in (1.0, 2.0, 7.0):
        case(
            implementation,
            one(step, device),
            learning_rate=one(0.125, device),
            grad_scale=torch.tensor(0.25, device=device),
            inverse_scale=2.0,
        )
        other.grads = scaled
        other(implementation, int(step), learning_rate=0.125)
    assert_close(case.written(), other.written())


@devices
@rules
@pytest.mark.parametrize("last", [False, True], ids=["param_nchw", "param_nhwc"])
def test_memory_formats(device: str, rule: Rule, last: bool) -> None:
    formats = [torch.contiguous_format, torch.channels_last]
    case = make_case(rule, [(8, 5, 3, 3), (64, 3, 1, 1), (1, 7, 5, 5)], device=device, masters=True, twin_counts=(1, 2))
    case = case.mapped(
        lambda tensor: tensor.contiguous(memory_format=formats[last]),
        lambda grad: grad.contiguous(memory_format=formats[not last]),
    )
    assert_native_is_reference(case, check_finite=True)


@devices
@forms
@rules
def test_gradients_with_gaps_and_overlaps(device: str, implementation: str, rule: Rule) -> None:
    """Every other column of a larger tensor, and one row for all, do what their dense copies do."""
    case = make_case(rule, [(7, 5), (4, 3, 3)], device=device, twin_counts=(1,))
    case.grads = [case.grads[0].repeat_interleave(2, dim=1)[:, ::2], case.grads[1][:1].expand(4, 3, 3)]
    dense = copy.deepcopy(case)
    dense.grads = [grad.contiguous() for grad in case.grads]
    assert not case.grads[0].is_contiguous()
    case(implementation, check_finite=True)
    dense(implementation, check_finite=True)
    assert_same(case.written(), dense.written())


@devices
@rules
@pytest.mark.parametrize("masters", [False, True], ids=["f32", "masters"])
def test_views_at_odd_addresses(device: str, rule: Rule, masters: bool) -> None:
    """Slices of one flat buffer: dense, aligned to nothing but their element, with guards around them."""
    case = make_case(rule, [(3,), (1030,), (4097,)], device=device, masters=masters, twin_counts=(1,))
    buffers = []

    def shifted(tensor: Tensor) -> Tensor:
        guard = tensor.new_full((1,), 7.0)
        buffers.append(torch.cat([guard, tensor, guard]))
        return buffers[-1][1:-1]

    assert_native_is_reference(case.mapped(shifted), check_finite=True)
    for buffer in buffers:
        assert buffer[[0, -1]].tolist() == [7.0, 7.0]


@devices
@rules
@pytest.mark.parametrize("odd", ["params", "grads", "states", "twins", "masters"])
def test_one_list_at_odd_addresses(device: str, rule: Rule, odd: str) -> None:
    """A tensor may be read in packs only if every one of its partners is aligned for them."""
    case = make_case(rule, [(4099,)], device=device, masters=True, twin_counts=(2,))

    def shifted(tensor: Tensor) -> Tensor:
        return torch.cat([tensor.new_zeros(1), tensor])[1:]

    setattr(case, odd, getattr(case.mapped(shifted), odd))
    assert_native_is_reference(case)


@devices
@rules
@pytest.mark.parametrize("count", [70, 700], ids=["over_one_small_launch", "over_one_large_launch"])
def test_many_tensors(device: str, rule: Rule, count: int) -> None:
    shapes = [(1 + index % 7,) if index % 50 else (5000,) for index in range(count)]
    assert_native_is_reference(make_case(rule, shapes, device=device, twin_counts=(1,)), steps=1, check_finite=True)
    case = make_case(rule, shapes, device=device, twin_counts=(0,))
    case.grads[-1].fill_(float("nan"))
    assert_native_is_reference(case, steps=1, check_finite=True)


@devices
@rules
def test_the_same_bits_every_time(device: str, rule: Rule) -> None:
    """Norms are summed in a fixed order, however many threads there are."""
    results = []
    threads = torch.get_num_threads()
    for count in (1, 2, 3):
        case = make_case(rule, [(300001,), (5,), (70000,)], device=device)
        torch.set_num_threads(count)
        try:
            case("native")
        finally:
            torch.set_num_threads(threads)
        results.append(case.written())
    assert_same(results[1], results[0])
    assert_same(results[2], results[0])


@rules
@settings(max_examples=20, deadline=None)
@given(
    shapes=st.lists(st.lists(st.integers(0, 9), max_size=4).map(tuple), min_size=1, max_size=8),
    masters=st.booleans(),
    grad_dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    transpose=st.booleans(),
    check_finite=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_shapes(rule: Rule, shapes, masters, grad_dtype, transpose: bool, check_finite: bool, seed: int) -> None:
    case = make_case(rule, shapes, grad_dtype=grad_dtype, masters=masters, seed=seed)
    if transpose:
        case.grads = [grad.mT.contiguous().mT if grad.ndim > 1 else grad for grad in case.grads]
    assert_native_is_reference(case, check_finite=check_finite)
