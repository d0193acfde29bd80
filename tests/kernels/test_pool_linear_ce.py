"""pool_linear_ce's numbers: both forms against PyTorch's own functions in float64."""

from collections.abc import Iterable, Iterator

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels.forms import TOLERANCE, assert_near, devices, dtypes, randn, relative_gap
from kernels.pool_linear_ce_cases import Case, answers, assert_answers, make_case, pool_answer
from mlaan_kernels.choice import interpreting
from mlaan_kernels.pool_linear_ce import HeadResults, pool, pool_linear_ce

MAPS = {
    "N1-C3-1x1-V2": ([(1, 3, 1, 1)], 2, [0]),
    "N2-C65-7x7-V10": ([(2, 65, 7, 7)], 10, [0]),
    "N3-C37-13x17-V17": ([(3, 37, 13, 17)], 17, [0]),
    "N3-C37-tokens5-V3": ([(3, 5, 37)], 3, [0]),
    "N5-C16-pooled-V6": ([(5, 16)], 6, [0]),
    "N3-C5-three-heads-one-feature": ([(3, 5, 2, 3)], 4, [0, 0, 0]),
    "N2-C5-heads-over-features": ([(2, 5, 4, 4), (2, 5, 1, 2), (2, 3, 5)], 7, [2, 0, 1, 0]),
}
shapes = pytest.mark.parametrize("shape", MAPS.values(), ids=MAPS)
smoothings = pytest.mark.parametrize("smoothing", [0.0, 0.1], ids=["hard", "smooth"])


@pytest.fixture(autouse=True)
def exact_products() -> Iterator[None]:
    """By hand: the switch is no attribute that monkeypatch could take back."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


def triton(case: Case, smoothing: float = 0.0) -> HeadResults:
    return pool_linear_ce(*case, label_smoothing=smoothing, implementation="triton")


def reference(case: Case, smoothing: float = 0.0) -> HeadResults:
    return pool_linear_ce(*case, label_smoothing=smoothing, implementation="reference")


@shapes
@smoothings
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_reference(shape: tuple, smoothing: float, dtype: torch.dtype) -> None:
    case = make_case(*shape, dtype=dtype)
    found = reference(case, smoothing)
    assert found.weight_grads.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert_answers(found, answers(case, smoothing), TOLERANCE[dtype], counts=dtype in (torch.float32, torch.float64))


@devices
@shapes
@smoothings
@dtypes
def test_triton(device: str, shape: tuple, smoothing: float, dtype: torch.dtype) -> None:
    case = make_case(*shape, dtype=dtype, device=device)
    found = triton(case, smoothing)
    assert found.weight_grads.dtype == found.losses.dtype == torch.float32
    assert_answers(found, answers(case, smoothing), TOLERANCE[dtype], counts=dtype == torch.float32)


@devices
@shapes
@smoothings
@dtypes
def test_probabilities_in_place_of_labels(device: str, shape: tuple, smoothing: float, dtype: torch.dtype) -> None:
    case = make_case(*shape, dtype=dtype, device=device).soft(seed=1)
    wanted, usual = answers(case, smoothing), reference(case, smoothing)
    assert_answers(usual, wanted, TOLERANCE[dtype], counts=dtype == torch.float32)
    # Softmax and probabilities nearly cancel: what PyTorch loses by rounding, truncation loses up to four times.
    gaps = [relative_gap(getattr(usual, name), getattr(wanted, name)) for name in ("weight_grads", "bias_grads")]
    allowed = max(TOLERANCE[dtype], 4 * max(gaps))
    assert_answers(triton(case, smoothing), wanted, allowed, counts=dtype == torch.float32)


@shapes
def test_probabilities_in_float64(shape: tuple) -> None:
    case = make_case(*shape, dtype=torch.float64).soft()
    assert_answers(reference(case, 0.1), answers(case, 0.1), TOLERANCE[torch.float64])


@devices
@pytest.mark.parametrize("classes", [65, 1500])
def test_probabilities_over_several_blocks(device: str, classes: int) -> None:
    case = make_case([(67, 70)] if classes == 65 else [(3, 70)], classes, device=device).soft()
    assert_answers(triton(case, 0.1), answers(case, 0.1), TOLERANCE[torch.float32])


@devices
def test_certain_probabilities_are_labels(device: str) -> None:
    case = make_case([(4, 5, 2, 2)], 7, [0, 0], device=device)
    certain = case._replace(labels=torch.nn.functional.one_hot(case.labels, 7).float())
    for form in (triton, reference):
        assert_answers(form(certain, 0.1), form(case, 0.1), 1e-6)


@devices
@dtypes
def test_extreme_logits_stay_finite_under_probabilities(device: str, dtype: torch.dtype) -> None:
    signs = torch.tensor([[1.0, -1, 1], [-1, 1, -1], [0, 0, 1]])
    weights = (1e4 * signs).bfloat16().float()
    case = Case([torch.eye(3)], [0], [weights], [torch.zeros(3)], torch.tensor([1, 0, 2]), [1.0]).to(dtype, device)
    case = case.soft()
    for form in (triton, reference):
        assert_answers(form(case), answers(case), TOLERANCE[dtype])


@devices
@dtypes
def test_no_biases(device: str, dtype: torch.dtype) -> None:
    case = make_case([(2, 5, 2, 2)], 9, [0, 0], bias=False, dtype=dtype, device=device)
    assert_answers(triton(case), answers(case), TOLERANCE[dtype], counts=dtype == torch.float32)


@devices
@dtypes
def test_several_blocks_of_images_channels_and_classes(device: str, dtype: torch.dtype) -> None:
    case = make_case([(67, 70)], 65, dtype=dtype, device=device)
    assert_answers(triton(case, 0.1), answers(case, 0.1), TOLERANCE[dtype], counts=dtype == torch.float32)


@devices
def test_many_blocks_of_classes(device: str) -> None:
    """1500 classes: 12 blocks of partial sums, and 2 of the pass over rows; labels at both ends and between."""
    case = make_case([(3, 70)], 1500, device=device)
    case.labels[:] = torch.tensor([0, 1499, 700])
    assert_answers(triton(case, 0.1), answers(case, 0.1), TOLERANCE[torch.float32])


def test_22000_classes() -> None:
    case = make_case([(2, 3, 2, 2)], 22_000)
    assert_answers(reference(case, 0.1), answers(case, 0.1), TOLERANCE[torch.float32])


@devices
@pytest.mark.parametrize("form", [triton, reference], ids=["triton", "reference"])
def test_ties_go_to_the_lower_class(device: str, form) -> None:
    """Rank of a label among equal logits is the number of lower classes, here with a greater logit at class 0."""
    for label, top1, top5 in [(0, 1, 1), (1, 0, 1), (4, 0, 1), (5, 0, 0), (6, 0, 0)]:
        bias = torch.tensor([2.0, 1, 1, 1, 1, 1, 1])
        case = Case([torch.zeros(1, 3)], [0], [torch.zeros(7, 3)], [bias], torch.tensor([label]), [1.0])
        found = form(case.to(torch.float32, device))
        assert (found.top1.item(), found.top5.item()) == (top1, top5), label


@devices
@pytest.mark.parametrize("form", [triton, reference], ids=["triton", "reference"])
def test_all_logits_equal(device: str, form) -> None:
    """One image per class: as with argmax, class 0 is the only right answer."""
    case = Case([torch.ones(8, 3)], [0], [torch.ones(8, 3)], [None], torch.arange(8), [1.0])
    found = form(case.to(torch.float32, device))
    assert (found.top1.item(), found.top5.item()) == (1, 5)


@devices
@pytest.mark.parametrize("form", [triton, reference], ids=["triton", "reference"])
def test_nan_is_no_right_answer(device: str, form) -> None:
    found = form(make_case([(2, 3)], 6, device=device)._replace(features=[torch.full((2, 3), torch.nan).to(device)]))
    assert found.losses.isnan().all()
    assert (found.top1.item(), found.top5.item()) == (0, 0)


@devices
@smoothings
@dtypes
def test_extreme_logits_stay_finite(device: str, smoothing: float, dtype: torch.dtype) -> None:
    signs = torch.tensor([[1.0, -1, 1], [-1, 1, -1], [0, 0, 1]])
    case = Case([torch.eye(3)], [0], [1e4 * signs], [torch.zeros(3)], torch.tensor([1, 0, 2]), [1.0])
    case = case._replace(weights=[weight.bfloat16().float() for weight in case.weights]).to(dtype, device)
    wanted = answers(case, smoothing)
    for form in (triton, reference):
        assert_answers(form(case, smoothing), wanted, TOLERANCE[dtype])


@devices
@dtypes
@pytest.mark.parametrize("shape", [(1, 3, 1, 1), (2, 70, 7, 7), (1, 37, 13, 17), (3, 5, 6), (4, 3)], ids=str)
@pytest.mark.parametrize("implementation", ["triton", "reference"])
def test_pool(device: str, dtype: torch.dtype, shape: tuple[int, ...], implementation) -> None:
    features = randn(*shape, dtype=dtype, device=device)
    found = pool(features, implementation=implementation)
    assert found.dtype == torch.float32
    assert_near(found, pool_answer(features), TOLERANCE[torch.float32])


def assert_same(found: Iterable[Tensor | None], wanted: Iterable[Tensor | None]) -> None:
    for one, other in zip(found, wanted, strict=True):
        assert one is not None
        assert other is not None
        assert torch.equal(one, other)


@devices
def test_memory_layout_changes_nothing(device: str) -> None:
    case = make_case([(2, 5, 3, 4), (2, 4, 5)], 3, [0, 1], device=device)
    contiguous, tokens = case.features[0].contiguous(), case.features[1].mT.contiguous().mT
    labels = torch.stack([case.labels, case.labels], 1)[:, 0]
    wanted, found = triton(case), triton(case._replace(features=[contiguous, tokens], labels=labels))
    assert_same(found, wanted)


@devices
def test_a_head_does_not_depend_on_its_neighbours(device: str) -> None:
    case = make_case([(3, 5, 2, 2), (3, 5, 1, 3)], 4, [1, 0, 1], device=device)
    together = triton(case, 0.1)
    alone = case._replace(taps=[1], weights=case.weights[2:], biases=case.biases[2:], loss_weights=[0.25])
    assert_same(triton(alone, 0.1), [None if result is None else result[2:] for result in together])


@devices
@pytest.mark.parametrize("form", [triton, reference], ids=["triton", "reference"])
def test_half_precision_keeps_small_probabilities(device: str, form) -> None:
    """float16 ends at 6e-8; probabilities of 1e-7, at a small loss weight, must come with their digits."""
    bias, weight = torch.full((16,), -16.0), torch.zeros(16, 2)
    bias[0] = 0.0
    weight[1:, 1] = 1.0  # of a channel that is 0: it changes no logit, but the gradient of the features
    case = Case([torch.tensor([[1.0, 0.0]])], [0], [weight], [bias], torch.tensor([0]), [1e-3])
    case = case.to(torch.float16, device)
    found, wanted = form(case), answers(case)
    assert wanted.weight_grads[0, 1:, 0].abs().max() < 2e-10
    assert_near(found.weight_grads[0, 1:], wanted.weight_grads[0, 1:], 2**-9)
    assert_near(found.pooled_grads, wanted.pooled_grads, 2**-9)


@settings(max_examples=8, deadline=None)
@given(
    images=st.integers(1, 5),
    channels=st.integers(1, 40),
    height=st.integers(1, 5),
    width=st.integers(1, 5),
    classes=st.integers(2, 30),
    taps=st.lists(st.integers(0, 1), min_size=1, max_size=3),
    bias=st.booleans(),
    smoothing=st.sampled_from([0.0, 0.3]),
)
@pytest.mark.skipif(not interpreting(), reason="many shapes, and each would be tuned for: for the interpreter")
def test_any_shapes(
    images: int,
    channels: int,
    height: int,
    width: int,
    classes: int,
    taps: list[int],
    bias: bool,
    smoothing: float,
) -> None:
    features = [(images, channels, height, width), (images, width, channels)]
    case = make_case(features, classes, taps, bias)
    assert_answers(triton(case, smoothing), answers(case, smoothing), 2e-5)


@devices
def test_equals_the_common_way_of_writing_it(device: str) -> None:
    """A plain model's gradients, with the loss weight on the loss."""
    case = make_case([(4, 6, 3, 3)], 5, device=device)
    weight = case.weights[0].clone().requires_grad_()
    loss = F.cross_entropy(F.linear(case.features[0].mean((2, 3)), weight, case.biases[0]), case.labels)
    (0.7 * loss).backward()
    found = triton(case._replace(loss_weights=[0.7]))
    assert weight.grad is not None
    assert_near(found.weight_grads[0], weight.grad, 1e-5)
    assert_near(found.losses[0], loss.detach(), 1e-6)
