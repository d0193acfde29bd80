"""The norm of all gradients and the clipping by it, against PyTorch's own."""

import math
from functools import partial

import pytest
import torch
from torch import Tensor

from kernels.sgd_cases import SIZES, assert_close, devices, forms, kernels_launched
from kernels.update_cases import RULES, Rule, make_case, rules
from mlaan_kernels.grad_norm import clip_coefficient, grad_norm
from mlaan_kernels.library import Implementation
from mlaan_kernels.updates.native import operator

pytestmark = pytest.mark.usefixtures("native")

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
on_gpu = pytest.mark.parametrize("device", [pytest.param("cuda", marks=pytest.mark.gpu)])


def draw(shapes: list, dtype: torch.dtype, device: str) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype) for shape in shapes]


def exact(grads: list[Tensor]) -> float:
    return math.sqrt(math.fsum(float(grad.double().square().sum()) for grad in grads))


@devices
@forms
@pytest.mark.parametrize("dtype", DTYPES, ids=["f64", "f32", "bf16", "f16"])
@pytest.mark.parametrize("count", [1, 800], ids=["one_launch", "several"])
def test_norm_of_everything(device: str, implementation: Implementation, dtype: torch.dtype, count: int) -> None:
    grads = draw([*SIZES, *[(3,)] * count], dtype, device)
    norm, finite = grad_norm(grads, 0.125, implementation=implementation)
    assert norm.dtype == torch.float32
    assert finite.dtype == torch.bool
    assert norm.shape == finite.shape == ()
    assert norm.device.type == finite.device.type == device
    assert norm.item() == pytest.approx(exact(grads) / 8, rel=1e-7)
    assert finite.item() is True


@devices
@forms
def test_any_layout(device: str, implementation: Implementation) -> None:
    base = draw([(6, 5, 3, 3), (40,)], torch.float32, device)
    grads = [
        base[0].contiguous(memory_format=torch.channels_last),
        base[0][::2, 1:],
        base[1][3:36],
        base[1][:6].expand(4, 6),
        base[1][1],
    ]
    norm, _ = grad_norm(grads, implementation=implementation)
    assert norm.item() == pytest.approx(exact(grads), rel=1e-6)


@devices
@forms
@pytest.mark.parametrize("dtype", DTYPES, ids=["f64", "f32", "bf16", "f16"])
@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("where", [(0, 0), (4, 100002), (6, 5)], ids=str)
def test_one_bad_element(
    device: str, implementation: Implementation, dtype: torch.dtype, value: float, where: tuple
) -> None:
    grads = draw(SIZES, dtype, device)
    grads[where[0]].view(-1)[where[1]] = value
    norm, finite = grad_norm(grads, implementation=implementation)
    assert finite.item() is False
    assert not math.isfinite(norm.item())
    assert math.isnan(norm.item()) == math.isnan(value)


@devices
@forms
def test_huge_but_finite(device: str, implementation: Implementation) -> None:
    grads = [torch.full((33,), 1e38, device=device)]
    norm, finite = grad_norm(grads, 1e-38, implementation=implementation)
    assert finite.item() is True
    assert norm.item() == pytest.approx(math.sqrt(33), rel=1e-6)


@devices
@forms
def test_nothing(device: str, implementation: Implementation) -> None:
    for grads in ([], [torch.zeros(0, 3, device=device)]):
        norm, finite = grad_norm(grads, implementation=implementation)
        assert norm.item() == 0.0
        assert finite.item() is True


@devices
def test_the_same_bits_every_time(device: str) -> None:
    grads = draw([(300001,), (5,), (70000,)], torch.float32, device)
    threads = torch.get_num_threads()
    found = set()
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        try:
            found.add(grad_norm(grads, implementation="native")[0].item())
        finally:
            torch.set_num_threads(threads)
    assert len(found) == 1


@devices
@forms
@rules
@pytest.mark.parametrize("max_norm", [0.1, 1e6], ids=["clipped", "not"])
def test_clipping_equals_torch(device: str, implementation: Implementation, rule: Rule, max_norm: float) -> None:
    """One pass with the coefficient, against clip_grad_norm_ and an update of what it leaves."""
    case = make_case(rule, SIZES, torch.float32, device)
    other = make_case(rule, SIZES, torch.float32, device)
    for param, grad in zip(other.params, other.grads, strict=True):
        param.grad = grad * 0.5
    torch.nn.utils.clip_grad_norm_(other.params, max_norm)
    other.grads = [param.grad for param in other.params if param.grad is not None]
    for param in other.params:
        param.grad = None
    other(implementation)
    norm, finite = grad_norm(case.grads, 0.5, implementation=implementation)
    case(implementation, inverse_scale=0.5, grad_scale=clip_coefficient(norm, max_norm), finite=finite)
    assert_close(case.written(), other.written())


@devices
@forms
def test_a_norm_that_is_not_finite_leaves_weights_alone(device: str, implementation: Implementation) -> None:
    case = make_case(RULES["lamb"], SIZES, device=device)
    case.grads[4][7] = float("nan")
    before = [tensor.clone() for tensor in case.written()]
    norm, finite = grad_norm(case.grads, implementation=implementation)
    skipped = case(implementation, grad_scale=clip_coefficient(norm, 1.0), finite=finite)
    assert skipped is not None
    assert skipped.item() == 1
    assert_close(case.written(), before)


def test_coefficient() -> None:
    norms = [clip_coefficient(torch.tensor(norm), 2.0) for norm in (0.0, 1.0, 4.0, math.inf, math.nan)]
    assert [norm.item() for norm in norms[:4]] == pytest.approx([1.0, 1.0, 0.5, 0.0], rel=1e-5)
    assert math.isnan(norms[4].item())
    assert norms[0].dtype == torch.float32
    with pytest.raises(ValueError, match=r"max_norm is 0.0"):
        clip_coefficient(torch.tensor(1.0), 0.0)


@forms
@pytest.mark.parametrize(
    ("dtypes", "message"),
    [
        ((torch.float32, torch.bfloat16), r"grads\[1\] is torch.bfloat16 on cpu"),
        ((torch.int32, torch.int32), r"grads\[0\] is torch.int32"),
    ],
    ids=["mixed", "int"],
)
def test_misfits_are_named(implementation: Implementation, dtypes: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        grad_norm([torch.zeros(3, dtype=dtype) for dtype in dtypes], implementation=implementation)


def test_the_operator_keeps_its_promises_to_torch() -> None:
    grads = draw([(3,), (4, 5)], torch.float32, "cpu")
    grad_norm(grads, implementation="native")
    torch.library.opcheck(operator("grad_norm"), (grads, 0.5, torch.empty(()), torch.empty((), dtype=torch.bool)))


@on_gpu
def test_two_launches(device: str) -> None:
    grads = draw([(64,)] * 400, torch.float32, device)
    grad_norm(grads, implementation="native")
    kernels = kernels_launched(partial(grad_norm, grads, implementation="native"))
    assert len(kernels) == 2, kernels
