"""pool_linear_ce beside its numbers: the differentiable loss, custom operators, launches, and what is refused."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.forms import TOLERANCE, assert_near, devices, dtypes, randn
from kernels.pool_linear_ce_cases import make_case, pool_answer
from mlaan_kernels import launching
from mlaan_kernels.choice import Implementation, interpreting, using
from mlaan_kernels.pool_linear_ce import pool, pool_linear_ce, pool_linear_ce_loss, tiles
from mlaan_kernels.pool_linear_ce import triton as kernels

needs_interpreter = pytest.mark.skipif(not interpreting(), reason="Triton's interpreter is off where there is a GPU")


@pytest.fixture(autouse=True)
def exact_products() -> Iterator[None]:
    """By hand: the switch is no attribute that monkeypatch could take back."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


def torch_loss(features: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, smoothing: float) -> Tensor:
    return F.cross_entropy(F.linear(pool_answer(features), weight, bias), labels, label_smoothing=smoothing)


@devices
@dtypes
@pytest.mark.parametrize("implementation", ["triton", "reference"])
@pytest.mark.parametrize("shape", [(2, 5, 3, 4), (2, 3, 5), (2, 5)], ids=["map", "tokens", "pooled"])
@pytest.mark.parametrize("with_bias", [True, False], ids=["bias", "no-bias"])
def test_loss_is_differentiable(
    device: str, dtype: torch.dtype, implementation: Implementation, shape: tuple[int, ...], with_bias: bool
) -> None:
    case = make_case([shape], 4, bias=with_bias, dtype=dtype, device=device)
    given = [t for t in (case.features[0], case.weights[0], case.biases[0]) if t is not None]
    ours = [t.clone().requires_grad_() for t in given]
    theirs = [t.double().cpu().requires_grad_() for t in given]

    def bias_of(tensors: list[Tensor]) -> Tensor | None:
        return tensors[2] if with_bias else None

    loss = pool_linear_ce_loss(
        ours[0], ours[1], bias_of(ours), case.labels, label_smoothing=0.1, implementation=implementation
    )
    wanted = torch_loss(theirs[0], theirs[1], bias_of(theirs), case.labels.cpu(), 0.1)
    assert loss.shape == ()
    assert_near(loss.detach(), wanted.detach(), TOLERANCE[dtype])
    (3 * loss).backward()
    (3 * wanted).backward()
    for one, other in zip(ours, theirs, strict=True):
        assert one.grad is not None
        assert other.grad is not None
        assert one.grad.dtype == one.dtype
        assert_near(one.grad, other.grad, TOLERANCE[dtype])


@pytest.mark.parametrize("shape", [(2, 3, 2, 2), (2, 4, 3), (2, 3)], ids=["map", "tokens", "pooled"])
def test_gradcheck_of_the_reference(shape: tuple[int, ...]) -> None:
    case = make_case([shape], 4, dtype=torch.float64)
    tensors = [case.features[0], case.weights[0], case.biases[0]]

    def loss(features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return pool_linear_ce_loss(features, weight, bias, case.labels, label_smoothing=0.1)

    assert torch.autograd.gradcheck(loss, [t.requires_grad_() for t in tensors if t is not None])


def test_only_wanted_gradients_and_no_second_ones() -> None:
    case = make_case([(2, 3)], 4)
    weight = case.weights[0].requires_grad_()
    loss = pool_linear_ce_loss(case.features[0], weight, case.biases[0], case.labels)
    (grad,) = torch.autograd.grad(loss.square(), [weight], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


@needs_interpreter
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
def test_opcheck_heads(bias: bool) -> None:
    from mlaan_kernels.pool_linear_ce.autograd import heads

    case = make_case([(2, 5, 2, 3), (2, 3, 5)], 4, [1, 0], bias=bias)
    given = [b for b in case.biases if b is not None]
    arguments = (case.features, case.taps, case.weights, given, case.labels, case.loss_weights, 0.1)
    checks = ("test_schema", "test_faketensor", "test_aot_dispatch_static")
    torch.library.opcheck(heads, arguments, test_utils=checks)


@needs_interpreter
@pytest.mark.parametrize("shape", [(2, 5, 2, 3), (2, 3, 5), (2, 5)], ids=["map", "tokens", "pooled"])
def test_opcheck_pool(shape: tuple[int, ...]) -> None:
    from mlaan_kernels.pool_linear_ce.autograd import pool as operator

    checks = ("test_schema", "test_faketensor", "test_aot_dispatch_static")
    torch.library.opcheck(operator, (randn(*shape),), test_utils=checks)


@needs_interpreter
def test_results_carry_no_history() -> None:
    case = make_case([(2, 3)], 4)
    case.weights[0].requires_grad_()
    for implementation in ("triton", "reference"):
        results = pool_linear_ce(*case, implementation=implementation)
        assert not any(result.requires_grad for result in results if result is not None)


@devices
def test_every_launch_is_a_listed_variant(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    launches: list[tuple[Any, dict[str, Any]]] = []
    launch = launching.launch

    def watch(kernel: Any, grid: Any, *arguments: Any, **constants: Any) -> None:
        launches.append((getattr(kernel, "fn", kernel) if hasattr(kernel, "configs") else kernel, constants))
        launch(kernel, grid, *arguments, **constants)

    monkeypatch.setattr(launching, "launch", watch)
    for dtype, classes, bias in [(torch.float32, 2, True), (torch.bfloat16, 20, False), (torch.float16, 130, True)]:
        pool_linear_ce(
            *make_case([(2, 16, 1, 2)], classes, bias=bias, dtype=dtype, device=device), implementation="triton"
        )
    pool(randn(2, 16, device=device), implementation="triton")
    variants = kernels.variants()
    assert len({variant.name for variant in variants}) == len(variants)
    assert len(launches) == 3 * 6 + 1
    for kernel, constants in launches:
        wanted = {**constants, "INTERPRETED": False} if "INTERPRETED" in constants else constants
        assert any(v.kernel is kernel and wanted.items() <= v.constants.items() for v in variants), (kernel, constants)


def test_variants_name_every_argument() -> None:
    for variant in kernels.variants():
        names = set(variant.signature) | set(variant.constants)
        assert names == set(variant.kernel.arg_names), variant.name
        assert not set(variant.signature) & set(variant.constants), variant.name


@pytest.mark.parametrize("classes", [2, 16, 17, 128, 129, 512, 513, 22_000])
def test_blocks_fit_the_padded_rows(classes: int) -> None:
    block = tiles.class_block(classes)
    assert all(block % tiles.loop_block(classes, single) == 0 for single in (True, False))


def test_using_chooses_for_auto(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launching, "launch", None)  # nothing may be launched
    case = make_case([(2, 3)], 4)
    pool_linear_ce(*case)
    with using("reference"):
        pool(case.features[0])


ERRORS = {
    "no-features": ({"features": []}, "features is empty"),
    "no-heads": ({"weights": []}, "weights is empty"),
    "features-shape": ({"features": [torch.ones(2, 3, 1, 1, 1)]}, r"features\[0\] has shape .* give \(N, C, H, W\)"),
    "features-empty": ({"features": [torch.ones(2, 3, 0, 4)]}, r"features\[0\] has shape .* must not be empty"),
    "features-dtype": ({"features": [torch.ones(2, 3).int()]}, r"features\[0\] is torch.int32: give float32"),
    "features-N": ({"features": [torch.ones(2, 3), torch.ones(4, 3)]}, r"features\[1\] has N 4, features\[0\] has 2"),
    "features-C": (
        {"features": [torch.ones(2, 3), torch.ones(2, 9, 4)]},
        r"features\[1\] has C 4, features\[0\] has 3",
    ),
    "features-mixed": ({"features": [torch.ones(2, 3), torch.ones(2, 3).half()]}, r"features\[1\] has dtype"),
    "taps-range": ({"taps": [1]}, r"taps\[0\] is 1: there are 1 features"),
    "taps-negative": ({"taps": [-1]}, r"taps\[0\] is -1"),
    "taps-count": ({"taps": [0, 0]}, "taps has 2 entries, weights has 1"),
    "weights-C": ({"weights": [torch.ones(4, 5)]}, r"weights\[0\] has shape \(4, 5\): .* ask for \(4, 3\)"),
    "weights-V": (
        {"weights": [torch.ones(4, 3), torch.ones(5, 3)], "taps": [0, 0], "biases": [None] * 2, "loss_weights": [1, 1]},
        r"weights\[1\] has shape \(5, 3\): .* ask for \(4, 3\)",
    ),
    "weights-dtype": ({"weights": [torch.ones(4, 3).half()]}, r"weights\[0\] is torch.float16: .* take torch.float32"),
    "weights-dim": ({"weights": [torch.ones(3)]}, r"weights\[0\] has shape \(3,\): it must be \(V, C\)"),
    "biases-shape": ({"biases": [torch.ones(3)]}, r"biases\[0\] has shape \(3,\): .* ask for \(4,\)"),
    "biases-some": (
        {"weights": [torch.ones(4, 3)] * 2, "taps": [0, 0], "biases": [torch.ones(4), None], "loss_weights": [1, 1]},
        r"biases\[1\] is None: all heads have a bias or none",
    ),
    "loss-weights": ({"loss_weights": []}, "loss_weights has 0 entries"),
    "labels-dtype": ({"labels": torch.zeros(2, dtype=torch.int32)}, "labels is torch.int32: give int64"),
    "labels-N": ({"labels": torch.zeros(3, dtype=torch.int64)}, r"labels has shape \(3,\)"),
    "smoothing-1": ({"label_smoothing": 1.0}, "label_smoothing is 1.0: it must be at least 0 and below 1"),
    "smoothing-negative": ({"label_smoothing": -0.1}, "label_smoothing is -0.1"),
}


@pytest.mark.parametrize(("wrong", "message"), ERRORS.values(), ids=ERRORS)
def test_errors(wrong: dict[str, Any], message: str) -> None:
    arguments = make_case([(2, 3)], 4)._asdict()
    with pytest.raises(ValueError, match=message):
        pool_linear_ce(**{**arguments, **wrong})


def test_pool_errors() -> None:
    with pytest.raises(ValueError, match=r"features has shape \(3,\)"):
        pool(torch.ones(3))
    with pytest.raises(ValueError, match=r"features is torch\.int64"):
        pool(torch.ones(2, 3, dtype=torch.int64))
