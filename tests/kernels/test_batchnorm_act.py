"""BatchNorm + residual + ReLU as one layer, against torch.nn.BatchNorm2d in float64 under autograd."""

import copy
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from kernels.batchnorm_cases import Case, Found, assert_found, few_programs, forms, in_float64, make_inputs, make_layer
from kernels.forms import TOLERANCE, assert_near, devices, dtypes, randn
from mlaan_kernels import launching
from mlaan_kernels.batchnorm_act import batchnorm_act

__all__ = ["few_programs"]

SHAPES = [(2, 3, 7, 7), (1, 37, 13, 17), (3, 65, 1, 1), (2, 130, 7, 7), (1, 65, 7, 7)]
shapes = pytest.mark.parametrize("shape", SHAPES, ids=["N{}-C{}-{}x{}".format(*shape) for shape in SHAPES])
residuals = pytest.mark.parametrize("residual", ["none", "plain"])
pytestmark = pytest.mark.usefixtures("few_programs")


def as_layer(case: Case, implementation: Any, *, contiguous: bool = False) -> tuple[Found, Found]:
    """Found by the layer under autograd, and wanted."""
    inputs = make_inputs(case)
    if contiguous:
        inputs.c = inputs.c.contiguous()
        inputs.dense = [dy.contiguous() for dy in inputs.dense if dy is not None]
    wanted = in_float64(case, inputs)
    c = inputs.c.requires_grad_()
    residual = None if inputs.residual is None else inputs.residual.requires_grad_()
    y = batchnorm_act(c, inputs.layer, residual, relu=case.relu, implementation=implementation)
    assert y.dtype == case.dtype
    y.backward(inputs.dense[0])
    grads = {"dc0": c.grad, "dweight0": inputs.layer.weight.grad, "dbias0": inputs.layer.bias.grad}
    grads |= {} if residual is None else {"dresidual0": residual.grad}
    found = {"y": y.detach()} | {name: b.clone() for name, b in inputs.layer.named_buffers()}
    del wanted["pooled"]
    return found | {name: grad for name, grad in grads.items() if grad is not None}, wanted


@devices
@forms
@shapes
@residuals
def test_layer(device: str, implementation: str, shape: tuple[int, int, int, int], residual: str) -> None:
    found, wanted = as_layer(Case(shape, residual, device=device), implementation)
    assert_found(found, wanted, TOLERANCE[torch.float32])


@devices
@forms
@dtypes
@residuals
@pytest.mark.parametrize("relu", [True, False], ids=["relu", "linear"])
def test_dtypes(device: str, implementation: str, dtype: torch.dtype, residual: str, relu: bool) -> None:
    case = Case((2, 19, 5, 7), residual, relu=relu, dtype=dtype, device=device)
    assert_found(*as_layer(case, implementation), TOLERANCE[dtype])


@devices
@forms
@residuals
@pytest.mark.parametrize("relu", [True, False], ids=["relu", "linear"])
def test_evaluation_mode(device: str, implementation: str, residual: str, relu: bool) -> None:
    case = Case((1, 19, 1, 1), residual, relu=relu, training=False, device=device)
    assert_found(*as_layer(case, implementation), TOLERANCE[torch.float32])


@devices
@forms
@residuals
def test_contiguous_inputs(device: str, implementation: str, residual: str) -> None:
    found, wanted = as_layer(Case((2, 19, 5, 7), residual, device=device), implementation, contiguous=True)
    assert_found(found, wanted, TOLERANCE[torch.float32])


@shapes
@residuals
@pytest.mark.parametrize("relu", [True, False], ids=["relu", "linear"])
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_reference_in_float64(shape: tuple[int, int, int, int], residual: str, relu: bool, training: bool) -> None:
    case = Case(shape, residual, relu=relu, training=training, dtype=torch.float64)
    assert_found(*as_layer(case, "reference"), TOLERANCE[torch.float64])


@devices
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 70), st.integers(1, 9), st.integers(1, 9)).filter(
        lambda shape: shape[0] * shape[2] * shape[3] > 3
    ),
    residual=st.sampled_from(["none", "plain"]),
    relu=st.booleans(),
)
def test_any_shape(device: str, shape: tuple[int, int, int, int], residual: str, relu: bool) -> None:
    found, wanted = as_layer(Case(shape, residual, relu=relu, device=device), "triton")
    assert_found(found, wanted, 2 * TOLERANCE[torch.float32])


@devices
@forms
def test_mean_far_from_zero(device: str, implementation: Any) -> None:
    """1000 standard deviations away float32 holds a value to 2^-24 * 1000 of one of them, and its mean no better."""
    c = (randn(4, 19, 5, 7, device=device) + 1000).requires_grad_()
    layer = make_layer(19, 5).to(device)
    twin, c64 = copy.deepcopy(layer).double(), c.detach().double().requires_grad_()
    dy = randn(4, 19, 5, 7, device=device, seed=1)
    wanted = twin(c64)
    wanted.backward(dy.double())
    y = batchnorm_act(c, layer, relu=False, implementation=implementation)
    y.backward(dy)
    assert c.grad is not None
    assert c64.grad is not None
    assert_near(y.detach(), wanted.detach(), 3e-4, "y")
    assert_near(c.grad, c64.grad, 3e-4, "dc")
    assert isinstance(layer.running_var, Tensor)
    assert isinstance(twin.running_var, Tensor)
    assert_near(layer.running_var, twin.running_var, 1e-5, "running_var")


@devices
@forms
@pytest.mark.parametrize(("residual", "relu"), [(False, True), (True, False), (True, True)])
def test_saves_few_maps(device: str, implementation: Any, residual: bool, relu: bool) -> None:
    """c, and the residual where a ReLU's mask needs it; the rest are numbers per channel."""
    c = randn(2, 19, 5, 7, device=device).requires_grad_()
    added = randn(2, 19, 5, 7, device=device).requires_grad_() if residual else None
    saved: list[Tensor] = []

    def pack(x: Tensor) -> Tensor:
        saved.append(x)
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        batchnorm_act(c, make_layer(19, 5).to(device), added, relu=relu, implementation=implementation)
    kept = {x.data_ptr() for x in saved if x.numel() == c.numel()}
    assert kept == {c.data_ptr(), *([added.data_ptr()] if added is not None and relu else [])}
    assert sorted(x.numel() for x in saved if x.numel() != c.numel()) == [19] * 4


@devices
def test_launches(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Triton form runs Triton's kernels, once each; without a residual nothing is written between the two last."""
    launched: list[tuple[str, list[Any]]] = []
    launch = launching.launch

    def spy(kernel: Any, grid: Any, *arguments: Any, **constants: Any) -> None:
        launched.append((kernel.__name__, [a for a in arguments if isinstance(a, Tensor) and a.ndim == 4]))
        launch(kernel, grid, *arguments, **constants)

    monkeypatch.setattr(launching, "launch", spy)
    c = randn(2, 19, 5, 7, device=device).requires_grad_()
    batchnorm_act(c, make_layer(19, 5).to(device), implementation="triton").square().sum().backward()
    names = ["statistics_kernel", "norm_kernel", "forward_kernel", "reduce_kernel", "input_grad_kernel"]
    assert [name for name, _ in launched] == names
    reduced = {x.data_ptr() for x in launched[3][1] if x.shape == c.shape}
    assert len(reduced) == 2, "reduce reads c and dy alone, and writes no map"


@devices
@forms
def test_gradients_that_are_not_asked_for(device: str, implementation: Any) -> None:
    c, residual = randn(2, 19, 5, 7, device=device), randn(2, 19, 5, 7, device=device, seed=1).requires_grad_()
    layer = make_layer(19, 5).to(device)
    layer.weight.requires_grad_(False)
    y = batchnorm_act(c, layer, residual, implementation=implementation)
    y.sum().backward()
    assert c.grad is None
    assert layer.weight.grad is None
    assert residual.grad is not None
    assert torch.equal(residual.grad, (y > 0).float())
    assert layer.bias.grad is not None


@devices
@forms
def test_nan_comes_through_relu(device: str, implementation: Any) -> None:
    c = randn(2, 19, 5, 7, device=device)
    c[0, 3, 0, 0] = torch.nan
    y = batchnorm_act(c, make_layer(19, 5).to(device), implementation=implementation)
    assert y[:, 3].isnan().all()
    assert not y[:, 4].isnan().any()


@devices
@forms
def test_no_gradient_at_zero(device: str, implementation: Any) -> None:
    """As in torch: a block whose last weight and bias start at 0 adds zeros to a ReLU's output, half zeros itself."""
    c, residual = randn(2, 19, 5, 7, device=device).requires_grad_(), randn(2, 19, 5, 7, device=device, seed=1).relu()
    layer = make_layer(19, 5).to(device)
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    batchnorm_act(c, layer, residual.requires_grad_(), implementation=implementation).sum().backward()
    assert residual.grad is not None
    assert torch.equal(residual.grad, (residual > 0).float())
    batchnorm_act(c, layer.eval(), implementation=implementation).sum().backward()
    assert layer.bias.grad is not None
    assert torch.equal(layer.bias.grad, (residual > 0).float().sum((0, 2, 3)))


@forms
def test_refused(implementation: Any) -> None:
    def run(c: Tensor, layer: nn.BatchNorm2d | None = None, residual: Tensor | None = None) -> None:
        batchnorm_act(c, layer or nn.BatchNorm2d(c.shape[1]), residual, implementation=implementation)

    with pytest.raises(ValueError, match=r"BatchNorm over one value.*larger batches or maps"):
        run(randn(1, 3, 1, 1))
    with pytest.raises(ValueError, match=r"c of shape \(2, 3\).*is no map"):
        run(randn(2, 3))
    with pytest.raises(ValueError, match=r"no map .* of floats"):
        run(torch.ones(2, 3, 4, 4, dtype=torch.int64))
    with pytest.raises(ValueError, match="affine=True"):
        run(randn(2, 3, 4, 4), nn.BatchNorm2d(3, affine=False))
    with pytest.raises(ValueError, match="momentum"):
        run(randn(2, 3, 4, 4), nn.BatchNorm2d(3, momentum=None))
    with pytest.raises(ValueError, match="BatchNorm2d of 4 channels does not fit c with 3"):
        run(randn(2, 3, 4, 4), nn.BatchNorm2d(4))
    with pytest.raises(ValueError, match=r"residual of .* does not fit c"):
        run(randn(2, 3, 4, 4), None, randn(2, 3, 4, 5))
    with pytest.raises(ValueError, match=r"residual of .*bfloat16 does not fit c"):
        run(randn(2, 3, 4, 4), None, randn(2, 3, 4, 4).bfloat16())
