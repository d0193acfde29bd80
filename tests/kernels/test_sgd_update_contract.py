"""The SGD operator's manners: refusals, autograd, fake tensors, CUDA graphs and launches."""

import copy
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from kernels.sgd_cases import RULES, State, assert_close, assert_same, devices, forms, kernels_launched, make_state
from mlaan_kernels.library import Implementation, use_native
from mlaan_kernels.sgd_update import Twin, sgd_update

pytestmark = pytest.mark.usefixtures("native")


@forms
def test_nothing_to_update(implementation: Implementation) -> None:
    assert sgd_update([], [], [], [], **RULES["nesterov"], implementation=implementation) is None
    skipped = sgd_update([], [], [], [], **RULES["nesterov"], check_finite=True, implementation=implementation)
    assert skipped is not None
    assert skipped.item() == 0
    empty = make_state([(0,), (2, 0)])
    skipped = sgd_update(*empty, **RULES["nesterov"], check_finite=True, implementation=implementation)
    assert skipped is not None
    assert skipped.item() == 0


def replaced(items: list, index: int, value: object) -> list:
    return [*items[:index], value, *items[index + 1 :]]


def alike(make: Callable[[], Tensor]) -> State:
    """One parameter whose partners all have its layout."""
    return State([make()], [make()], [make()], [Twin(0, make(), 0.9)])


on_gpu = pytest.mark.parametrize("device", [pytest.param("cuda", marks=pytest.mark.gpu)])
MISFITS = {
    r"grads has 1 tensors": lambda s: s._replace(grads=s.grads[:1]),
    r"momenta has 1 tensors": lambda s: s._replace(momenta=s.momenta[:1]),
    r"momenta has 0 tensors": lambda s: s._replace(momenta=[]),
    r"params\[1\] has dtype": lambda s: s._replace(params=replaced(s.params, 1, s.params[1].double())),
    r"params\[0\] is torch.bfloat16": lambda s: s._replace(params=[p.bfloat16() for p in s.params]),
    r"params\[0\] .* strides \(6, 1\): it is not dense": lambda s: alike(lambda: torch.ones(12, 3)[::2]),
    r"params\[0\] .* strides \(0, 1\): it is not dense": lambda s: alike(lambda: torch.ones(3).expand(6, 3)),
    r"grads\[1\] has shape \(3, 6\)": lambda s: s._replace(grads=replaced(s.grads, 1, s.grads[1].mT)),
    r"grads\[0\] is torch.float64": lambda s: s._replace(grads=[g.double() for g in s.grads]),
    r"grads\[1\] has dtype": lambda s: s._replace(grads=replaced(s.grads, 1, s.grads[1].half())),
    r"momenta\[1\] has shape": lambda s: s._replace(momenta=replaced(s.momenta, 1, torch.zeros(18))),
    r"momenta\[1\] has strides": lambda s: s._replace(momenta=replaced(s.momenta, 1, torch.zeros(3, 6).mT)),
    r"momenta\[0\] has dtype": lambda s: s._replace(momenta=replaced(s.momenta, 0, torch.zeros(5).half())),
    r"twins\[0\].param is 2": lambda s: s._replace(twins=[s.twins[0]._replace(param=2)]),
    r"twins\[0\].param is -1": lambda s: s._replace(twins=[s.twins[0]._replace(param=-1)]),
    r"twins\[0\].keep is 1.5": lambda s: s._replace(twins=[s.twins[0]._replace(keep=1.5)]),
    r"twins\[0\].keep is nan": lambda s: s._replace(twins=[s.twins[0]._replace(keep=float("nan"))]),
    r"twins\[0\].tensor has shape": lambda s: s._replace(twins=[s.twins[0]._replace(tensor=torch.zeros(4))]),
    r"twins\[0\].tensor has strides": lambda s: s._replace(twins=[Twin(1, torch.zeros(3, 6).mT, 0.9)]),
    r"twins\[0\].tensor has dtype": lambda s: s._replace(twins=[Twin(1, torch.zeros(6, 3).double(), 0.9)]),
}  # fmt: skip


@forms
@pytest.mark.parametrize("message", MISFITS)
def test_misfits_are_named_and_nothing_is_written(implementation: Implementation, message: str) -> None:
    state = make_state([(5,), (6, 3)], twin_counts=(1,))
    state = MISFITS[message](state)
    before = [tensor.clone() for tensor in state.written()]
    with pytest.raises(ValueError, match=message):
        sgd_update(*state, **RULES["nesterov"], check_finite=True, implementation=implementation)
    assert_same(state.written(), before)


@on_gpu
@forms
def test_tensors_on_two_devices_are_named(device: str, implementation: Implementation) -> None:
    state = make_state([(5,), (6, 3)], device=device)
    state.momenta[1] = state.momenta[1].cpu()
    with pytest.raises(ValueError, match=r"momenta\[1\] has device cpu"):
        sgd_update(*state, **RULES["nesterov"], implementation=implementation)


@pytest.mark.parametrize(("momentum", "nesterov"), [(-0.1, False), (0.0, True)])
def test_scalars_that_make_no_sense(momentum: float, nesterov: bool) -> None:
    rule = {**RULES["plain"], "momentum": momentum, "nesterov": nesterov}
    with pytest.raises(ValueError, match="momentum"):
        sgd_update(*make_state([(2,)]), **rule)


@devices
@forms
def test_a_backward_that_needs_the_old_weight_raises(device: str, implementation: Implementation) -> None:
    weight = torch.ones(3, device=device, requires_grad=True)
    inputs = torch.ones(3, device=device, requires_grad=True)
    loss = (weight * inputs).sum()
    grad, momentum = torch.ones(3, device=device), torch.zeros(3, device=device)
    sgd_update([weight], [grad], [momentum], [], **RULES["nesterov"], implementation=implementation)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_the_operator_keeps_its_promises_to_torch() -> None:
    """Its schema names everything it writes, and it passes through fake tensors and tracing."""
    assert use_native("sgd_update", "native", torch.device("cpu"))
    params, grads, momenta, twins = make_state([(3,), (4, 5)])
    sgd_update(params, grads, momenta, twins, **RULES["nesterov"], implementation="native")
    lists = (params, grads, [], momenta, [], [twin.tensor for twin in twins], [twin.param for twin in twins])
    dials = (0.1, torch.tensor(0.1), 1.0, None, 1.0, torch.tensor(0.5))
    flags = (True, torch.tensor(True), torch.empty((), dtype=torch.int32))
    arguments = (*lists, [twin.keep for twin in twins], [], *dials, *flags, 0.9, True, 1e-4)
    torch.library.opcheck(torch.ops.mlaan.sgd_update.default, arguments)


@on_gpu
def test_runs_inside_a_cuda_graph(device: str) -> None:
    state = make_state([(5000,), (6, 3)], device=device)
    expected = copy.deepcopy(state)
    arguments = {**RULES["nesterov"], "check_finite": True, "implementation": "native"}
    sgd_update(*copy.deepcopy(state), **arguments)  # loads the library and its kernels outside the capture
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        sgd_update(*state, **arguments)
    for _ in range(3):
        graph.replay()
        sgd_update(*expected, **{**arguments, "implementation": "reference"})
    assert_close(state.written(), expected.written())


@on_gpu
def test_one_launch_and_two_with_the_check(device: str) -> None:
    state = make_state([(64,)] * 60, device=device)
    sgd_update(*state, **RULES["nesterov"], check_finite=True, implementation="native")
    for check_finite, expected in ((False, 1), (True, 2)):
        rule = {**RULES["nesterov"], "check_finite": check_finite, "implementation": "native"}
        kernels = kernels_launched(partial(sgd_update, *state, **rule))
        assert len(kernels) == expected, kernels
