"""AdamW against torch.optim.AdamW; what it shares with the other rules is in test_updates.py."""

from typing import Any

import pytest
import torch

from kernels.sgd_cases import SIZES, assert_close, devices, dtypes, forms
from kernels.update_cases import RULES, make_case

pytestmark = pytest.mark.usefixtures("native")

SETTINGS: dict[str, dict[str, Any]] = {
    "usual": {"betas": (0.9, 0.999), "epsilon": 1e-8, "weight_decay": 0.01},
    "no-decay": {"betas": (0.95, 0.9), "epsilon": 1e-5, "weight_decay": 0.0},
    "no-memory": {"betas": (0.0, 0.0), "epsilon": 1e-3, "weight_decay": 0.1},
}


@devices
@forms
@dtypes
@pytest.mark.parametrize("numbers", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("on_device", [False, True], ids=["number", "tensor"])
def test_equals_torch_adamw(device, implementation: str, dtype: torch.dtype, numbers: dict, on_device: bool) -> None:
    case = make_case(RULES["adamw"], SIZES, dtype, device, twin_counts=(0,))
    for state in (tensor for tensors in case.states for tensor in tensors):
        state.zero_()
    theirs = [param.clone().requires_grad_() for param in case.params]
    optimizer = torch.optim.AdamW(theirs, 0.125, numbers["betas"], numbers["epsilon"], numbers["weight_decay"])
    for step in range(1, 7):
        case.grads = make_case(RULES["adamw"], SIZES, dtype, device, seed=step).grads
        for param, grad in zip(theirs, case.grads, strict=True):
            param.grad = grad / 1024
        optimizer.step()
        count = torch.full((1,), float(step), device=device) if on_device else step
        case(implementation, count, **{"learning_rate": 0.125, "inverse_scale": 1 / 1024, **numbers})
    assert_close(case.params, [param.detach() for param in theirs])


@devices
@forms
def test_a_zero_gradient_from_the_start_only_decays(device: str, implementation: str) -> None:
    case = make_case(RULES["adamw"], [(9,)], device=device)
    before = case.params[0].clone()
    for tensor in (case.grads[0], case.states[0][0], case.states[1][0]):
        tensor.zero_()
    case(implementation, learning_rate=0.5, weight_decay=0.25)
    assert_close(case.params, [before * 0.875])
