"""The SGD operator's numbers: native form against the reference, both against torch.optim.SGD."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels.sgd_cases import (
    RULES,
    SIZES,
    TOLERANCE,
    State,
    assert_close,
    assert_native_is_reference,
    assert_same,
    devices,
    dtypes,
    forms,
    make_state,
    rules,
)
from mlaan_kernels.library import Implementation
from mlaan_kernels.sgd_update import Twin, sgd_update

pytestmark = pytest.mark.usefixtures("native")


@devices
@dtypes
@rules
@pytest.mark.parametrize("check_finite", [False, True], ids=["unchecked", "checked"])
def test_native_equals_reference(device: str, dtype: torch.dtype, rule: dict, check_finite: bool) -> None:
    state = make_state(SIZES, dtype, device)
    assert_native_is_reference(state, **rule, inverse_scale=0.25, check_finite=check_finite)


@devices
@forms
@dtypes
@rules
def test_equals_torch_sgd(device: str, implementation: Implementation, dtype: torch.dtype, rule: dict) -> None:
    state = make_state(SIZES, dtype, device, twin_counts=(0,))
    theirs = [param.clone().requires_grad_() for param in state.params]
    optimizer = torch.optim.SGD(
        theirs, rule["learning_rate"], rule["momentum"], 0, rule["weight_decay"], rule["nesterov"]
    )
    for step in range(4):
        grads = make_state(SIZES, dtype, device, seed=step).grads
        for param, grad in zip(theirs, grads, strict=True):
            param.grad = grad.clone()
        optimizer.step()
        scaled = [grad * 1024 for grad in grads]
        sgd_update(
            state.params,
            scaled,
            state.momenta,
            [],
            **rule,
            inverse_scale=1 / 1024,
            implementation=implementation,
        )
    assert_close(state.params, [param.detach() for param in theirs])


@devices
@forms
def test_twins_move_towards_the_old_weight(device: str, implementation: Implementation) -> None:
    weight, twin = torch.tensor([1.0, 2.0], device=device), torch.tensor([3.0, 6.0], device=device)
    frozen, copycat = twin.clone(), twin.clone()
    twins = [Twin(0, twin, 0.75), Twin(0, frozen, 1.0), Twin(0, copycat, 0.0)]
    grad = torch.ones(2, device=device)
    sgd_update([weight], [grad], [], twins, **RULES["plain"], implementation=implementation)
    assert weight.tolist() == pytest.approx([0.9, 1.9])
    assert twin.tolist() == [2.5, 5.0]
    assert frozen.tolist() == [3.0, 6.0]
    assert copycat.tolist() == [1.0, 2.0]


@devices
@forms
@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("where", [(0, 0), (4, 100002), (6, 5)], ids=str)
def test_one_bad_gradient_skips_everything(
    device: str, implementation: Implementation, value: float, where: tuple[int, int]
) -> None:
    state = make_state(SIZES, device=device)
    index, element = where
    state.grads[index].view(-1)[element] = value
    before = [tensor.clone() for tensor in state.written()]
    skipped = sgd_update(*state, **RULES["nesterov"], check_finite=True, implementation=implementation)
    assert skipped is not None
    assert skipped.device.type == device
    assert skipped.item() == 1
    assert_same(state.written(), before)


@devices
@forms
@pytest.mark.parametrize(
    ("dtype", "grad_dtype"),
    [
        (torch.float64, torch.float64),
        (torch.float32, torch.float32),
        (torch.float32, torch.bfloat16),
        (torch.float32, torch.float16),
    ],
    ids=["f64", "f32", "bf16", "f16"],
)
def test_huge_but_finite_gradients_are_not_skipped(
    device: str,
    implementation: Implementation,
    dtype: torch.dtype,
    grad_dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    state = make_state([(33,)], dtype, device)
    state = state._replace(grads=[torch.full_like(state.grads[0], torch.finfo(grad_dtype).max, dtype=grad_dtype)])
    monkeypatch.setattr(torch, "empty", lambda shape, **kind: torch.full(shape, -1, **kind))  # poison
    skipped = sgd_update(
        *state, **RULES["plain"], inverse_scale=1e-38, check_finite=True, implementation=implementation
    )
    assert skipped is not None
    assert skipped.item() == 0


@devices
@pytest.mark.parametrize("grad_dtype", [torch.bfloat16, torch.float16], ids=["bf16", "f16"])
@pytest.mark.parametrize("poison", [None, float("inf"), float("nan")], ids=str)
def test_gradients_of_lower_precision(device: str, grad_dtype: torch.dtype, poison: float | None) -> None:
    state = make_state(SIZES, device=device)
    state = state._replace(grads=[grad.to(grad_dtype) for grad in state.grads])
    if poison is not None:
        state.grads[3][-1] = poison
    assert_native_is_reference(state, **RULES["nesterov"], inverse_scale=0.5, check_finite=True)


@devices
@pytest.mark.parametrize("params_last", [False, True], ids=["param_nchw", "param_nhwc"])
@pytest.mark.parametrize("grads_last", [False, True], ids=["grad_nchw", "grad_nhwc"])
@pytest.mark.parametrize("grad_dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
def test_memory_formats(device: str, params_last: bool, grads_last: bool, grad_dtype: torch.dtype) -> None:
    formats = {False: torch.contiguous_format, True: torch.channels_last}
    state = make_state([(8, 5, 3, 3), (64, 3, 1, 1), (1, 7, 5, 5)], device=device, twin_counts=(1, 2))

    def lay(tensor: Tensor) -> Tensor:
        return tensor.contiguous(memory_format=formats[params_last])

    state = State(
        [lay(param) for param in state.params],
        [grad.to(grad_dtype).contiguous(memory_format=formats[grads_last]) for grad in state.grads],
        [lay(momentum) for momentum in state.momenta],
        [twin._replace(tensor=lay(twin.tensor)) for twin in state.twins],
    )
    assert_native_is_reference(state, **RULES["nesterov"], check_finite=True)


@devices
def test_views_at_odd_addresses(device: str) -> None:
    """Slices of one flat buffer: dense, and aligned to nothing but their element."""
    state = make_state([(3,), (1030,), (4097,)], device=device, twin_counts=(1,))

    def shifted(tensor: Tensor) -> Tensor:
        return torch.cat([tensor.new_zeros(1), tensor])[1:]

    state = State(
        [shifted(param) for param in state.params],
        [shifted(grad) for grad in state.grads],
        [shifted(momentum) for momentum in state.momenta],
        [twin._replace(tensor=shifted(twin.tensor)) for twin in state.twins],
    )
    assert_native_is_reference(state, **RULES["nesterov"], check_finite=True)


@devices
def test_nothing_outside_the_tensors_is_written(device: str) -> None:
    buffers = [torch.full((40,), float("nan"), device=device) for _ in range(4)]
    inner = [buffer[7:24] for buffer in buffers]
    for tensor in inner:
        tensor.fill_(1.0)
    param, grad, momentum, twin = inner
    sgd_update([param], [grad], [momentum], [Twin(0, twin, 0.9)], **RULES["nesterov"], implementation="native")
    for buffer in buffers:
        assert buffer[:7].isnan().all()
        assert buffer[24:].isnan().all()
        assert buffer[7:24].isfinite().all()


@devices
@pytest.mark.parametrize("count", [57, 700], ids=["over_one_small_launch", "over_one_large_launch"])
def test_many_tensors(device: str, count: int) -> None:
    shapes = [(1 + index % 7,) if index % 50 else (3000,) for index in range(count)]
    assert_native_is_reference(make_state(shapes, device=device), **RULES["momentum"], check_finite=True)
    state = make_state(shapes, device=device, twin_counts=(2,))
    state.grads[-1].fill_(float("nan"))
    assert_native_is_reference(state, **RULES["momentum"], check_finite=True)


@settings(max_examples=60, deadline=None)
@given(
    shapes=st.lists(st.lists(st.integers(0, 9), max_size=4).map(tuple), min_size=1, max_size=8),
    twin_counts=st.lists(st.integers(0, 3), min_size=1, max_size=4),
    rule=st.sampled_from(list(RULES.values())),
    dtype=st.sampled_from(list(TOLERANCE)),
    transpose=st.booleans(),
    check_finite=st.booleans(),
)
def test_any_shapes(shapes, twin_counts, rule, dtype, transpose: bool, check_finite: bool) -> None:
    state = make_state(shapes, dtype, twin_counts=twin_counts)
    if transpose:
        state = state._replace(grads=[grad.mT.contiguous().mT if grad.ndim > 1 else grad for grad in state.grads])
    assert_native_is_reference(state, **rule, check_finite=check_finite)
