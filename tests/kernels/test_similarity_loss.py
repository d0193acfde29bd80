"""Similarity matching against a loop in float64 that goes by the definition."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels.batch_losses import CLASSES, LABELS, UPSTREAM, assert_same, every_batch, value_and_gradient
from kernels.forms import TOLERANCE, assert_near, devices, dtypes, randn
from mlaan_kernels import launching
from mlaan_kernels.choice import Implementation
from mlaan_kernels.similarity_loss import similarity_loss

Shape = tuple[int, int, int]

forms = pytest.mark.parametrize("implementation", ["reference", "triton"])
shapes = pytest.mark.parametrize(
    "shape",
    [(6, 3, 2), (4, 2, 2), (37, 7, 7), (3, 2, 2), (1, 3, 3), (37, 1, 1), (5, 1, 2)],
    ids=["C6-3x2", "C4-2x2", "C37-7x7", "C3-2x2", "C1-3x3", "C37-1x1", "C5-1x2"],
)


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Of centred rows; 0 where one is constant."""
    constant = any(row.detach().std() <= 1e-12 * row.detach().abs().max() for row in (a, b) if len(row) > 1)
    a, b = a - a.mean(), b - b.mean()
    if constant or len(a) == 1:
        return 0 * (a @ b)
    return a @ b / ((a @ a) * (b @ b)) ** 0.5


def looped(features: Tensor, labels: Tensor, classes: int = CLASSES) -> Tensor:
    rows = list(features.flatten(1))
    if features.shape[1] > 3 and features[0, 0].numel() > 1:
        variances = [((c - c.mean()) ** 2).sum() / (c.numel() - 1) for image in features for c in image]
        deviations = [v**0.5 if v > 0 else 0 * v for v in variances]
        rows = list(torch.stack(deviations).view(features.shape[:2]))
    one_hot = torch.nn.functional.one_hot(labels.cpu(), classes).double()
    total = torch.zeros((), dtype=torch.float64)
    for i, row in enumerate(rows):
        for j, other in enumerate(rows):
            total = total + (cosine(row, other) - cosine(one_hot[i], one_hot[j])) ** 2
    return total / len(rows) ** 2


@every_batch
@shapes
def test_the_reference_is_the_loop(labels: Tensor, shape: Shape) -> None:
    features = randn(len(labels), *shape, dtype=torch.float64)
    reference = lambda x: similarity_loss(x, labels, CLASSES, implementation="reference")  # noqa: E731
    assert_same(reference, lambda x: looped(x, labels), features, 1e-10)


@forms
@devices
@dtypes
@shapes
def test_every_dtype_is_the_loop(device: str, dtype: torch.dtype, implementation: Implementation, shape: Shape) -> None:
    labels = torch.tensor(LABELS["one_member"])
    features = randn(len(labels), *shape, dtype=dtype, device=device)
    loss = lambda x: similarity_loss(x, labels.to(device), CLASSES, implementation=implementation)  # noqa: E731
    assert_same(loss, lambda x: looped(x, labels), features, TOLERANCE[dtype])


@devices
@every_batch
def test_every_batch_is_the_loop(device: str, labels: Tensor) -> None:
    features = randn(len(labels), 7, 3, 2, device=device)
    loss = lambda x: similarity_loss(x, labels.to(device), CLASSES, implementation="triton")  # noqa: E731
    assert_same(loss, lambda x: looped(x, labels), features, 1e-5)


@devices
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((70, 5, 2, 2), torch.float32), ((3, 65, 13, 17), torch.bfloat16), ((3, 65, 13, 17), torch.float16)],
    ids=["N70-C5-2x2-float32", "N3-C65-13x17-bfloat16", "N3-C65-13x17-float16"],
)
def test_several_blocks(device: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """More images, channels and pixels than a program has in hand; the reference in float64 judges."""
    features = randn(*shape, dtype=dtype, device=device).relu()
    labels = torch.arange(shape[0], device=device) ** 2 % CLASSES
    judge = lambda x: similarity_loss(x, labels.cpu(), CLASSES, implementation="reference")  # noqa: E731
    assert_same(
        lambda x: similarity_loss(x, labels, CLASSES, implementation="triton"), judge, features, TOLERANCE[dtype]
    )


@devices
@pytest.mark.parametrize("classes", [1, 2, 1000])
def test_any_number_of_classes(device: str, classes: int) -> None:
    labels = torch.tensor([0, 0, classes - 1, 0], device=device)
    loss = lambda x: similarity_loss(x, labels, classes, implementation="triton")  # noqa: E731
    assert_same(loss, lambda x: looped(x, labels, classes), randn(4, 5, 2, 3, device=device), 1e-5)


@forms
@devices
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("shape", [(6, 2, 2), (2, 3, 2), (1500, 1, 1)], ids=str)
@pytest.mark.parametrize("constant", [0.0, 0.1, 1e4])
def test_constant_rows_have_no_direction(
    device: str, dtype: torch.dtype, implementation: Implementation, shape: Shape, constant: float
) -> None:
    """Nor gradients, also where the mean of equal numbers is not that number, to the last digit."""
    features = randn(5, *shape, dtype=dtype, device=device)
    features[1] = features[1, :1] * constant if shape[0] > 3 and shape[1] > 1 else constant  # channels all alike
    features[3] = constant
    labels = torch.tensor(LABELS["one_member"][:5], device=device)
    loss = lambda x: similarity_loss(x, labels, CLASSES, implementation=implementation)  # noqa: E731
    value, gradient = value_and_gradient(loss, features)
    wanted = looped(features.double().cpu(), labels)
    assert_near(value, wanted, 1e-5)
    assert gradient.isfinite().all()
    assert gradient[[1, 3]].eq(0).all()
    assert gradient[[0, 2, 4]].ne(0).any()


@forms
@devices
@pytest.mark.parametrize("labels", LABELS)
def test_dead_features_are_defined(device: str, implementation: Implementation, labels: str) -> None:
    batch = torch.tensor(LABELS[labels], device=device)
    loss = lambda x: similarity_loss(x, batch, CLASSES, implementation=implementation)  # noqa: E731
    value, gradient = value_and_gradient(loss, torch.ones(len(batch), 6, 2, 2, device=device))
    assert_near(value, looped(torch.ones(len(batch), 6, 2, 2).double(), batch), 1e-6)
    assert gradient.eq(0).all()


@devices
def test_a_constant_channel_has_no_gradient(device: str) -> None:
    """Its standard deviation is exactly 0, although 1 / 3 times the number of pixels over that number is not 1 / 3."""
    features = randn(4, 5, 13, 11, device=device)
    features[:, 2] = 1 / 3
    labels = torch.tensor([0, 1, 1, 2], device=device)
    loss = lambda x: similarity_loss(x, labels, CLASSES, implementation="triton")  # noqa: E731
    assert value_and_gradient(loss, features)[1][:, 2].eq(0).all()
    assert_same(loss, lambda x: looped(x, labels), features, 1e-5)


@devices
def test_a_distant_mean_costs_no_digits(device: str) -> None:
    """A variance as mean of squares minus square of mean would have none left."""
    features = randn(4, 5, 13, 11, device=device) + 3000
    labels = torch.tensor([0, 1, 1, 2], device=device)
    loss = lambda x: similarity_loss(x, labels, CLASSES, implementation="triton")  # noqa: E731
    assert_same(loss, lambda x: looped(x, labels), features, 1e-3, 1e-4)


@forms
@devices
def test_autocast_changes_nothing(device: str, implementation: Implementation) -> None:
    features, labels = randn(8, 5, 3, 3, device=device), torch.tensor(LABELS["random"], device=device)
    loss = lambda x: similarity_loss(x, labels, CLASSES, implementation=implementation)  # noqa: E731
    wanted, wanted_gradient = value_and_gradient(loss, features)
    features.requires_grad_()
    with torch.autocast(device, torch.bfloat16):
        found = loss(features)
    assert torch.equal(found, wanted)
    assert torch.equal(torch.autograd.grad(UPSTREAM * found, [features])[0], wanted_gradient)


@devices
@pytest.mark.parametrize("shape", [(5, 4, 4), (2, 4, 4)], ids=str)
def test_layouts(device: str, shape: Shape) -> None:
    features = randn(8, *shape, device=device)
    labels = torch.tensor(LABELS["random"] * 2, device=device)[::2]  # strided
    loss = lambda x: similarity_loss(x, labels, CLASSES, implementation="triton")  # noqa: E731
    wanted = value_and_gradient(loss, features)
    part = randn(16, *shape, device=device)[::2].copy_(features)
    for other in (features.contiguous(), part):
        for found, same in zip(value_and_gradient(loss, other), wanted, strict=True):
            assert torch.equal(found, same)


@devices
@pytest.mark.parametrize(("shape", "kept"), [((5, 4, 4), 3), ((5, 1, 1), 1)], ids=["deviations", "features"])
def test_only_numbers_per_channel_are_saved(device: str, shape: Shape, kept: int) -> None:
    features = randn(70, *shape, device=device).requires_grad_()
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        similarity_loss(features, torch.arange(70, device=device) % 5, CLASSES, implementation="triton")
    assert len(saved) == kept
    assert all(x.data_ptr() == features.data_ptr() or x.shape == (70, 5) for x in saved)


@settings(max_examples=10, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 9), st.integers(1, 40), st.integers(1, 6), st.integers(1, 6)),
    classes=st.integers(1, 4),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)
@devices
def test_any_shape(device: str, shape, classes: int, dtype: torch.dtype) -> None:
    features, labels = randn(*shape, dtype=dtype, device=device), torch.arange(shape[0], device=device) % classes
    if shape[1] * shape[2] * shape[3] < 5 or 3 < shape[1] < 6:
        features = features.float()  # rows that are nearly constant, or two points: any rounding is large there
    judge = lambda x: similarity_loss(x, labels.cpu(), classes, implementation="reference")  # noqa: E731
    value, gradient = value_and_gradient(
        lambda x: similarity_loss(x, labels, classes, implementation="triton"), features
    )
    wanted, wanted_gradient = value_and_gradient(judge, features.double().cpu())
    assert abs(value.item() - wanted.item()) < 1e-4
    gap = (gradient.double().cpu() - wanted_gradient).norm() / (wanted_gradient.norm() + 1e-2)
    # Rows that are nearly constant are divided by what is left of them: roundings grow with that twice.
    rows = features.double().cpu().flatten(1)
    spread = (rows - rows.mean(1, keepdim=True)).norm(dim=1).min().clamp(max=1)
    assert gap * spread.square() < max(1e-3, TOLERANCE[features.dtype])


@devices
@pytest.mark.parametrize("shape", [(5, 2, 3), (5, 1, 1), (2, 2, 2)], ids=str)
def test_the_operators_keep_their_promises_to_torch(device: str, shape: Shape) -> None:
    from mlaan_kernels.similarity_loss import autograd

    features, labels = randn(3, *shape, device=device), torch.tensor([0, 1, 0], device=device)
    torch.library.opcheck(autograd.forward, (features, labels, CLASSES))
    if shape[0] > 3 and shape[1] > 1:
        _, mean, slopes = autograd.forward(features, labels, CLASSES)
        torch.library.opcheck(autograd.backward, (features, mean, slopes, torch.ones((), device=device)))


@devices
def test_launches(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Features are read once in the forward, and once in the backward."""
    launched, launch = [], launching.launch

    def watch(kernel, grid, *arguments, **constants):
        launched.append([a.data_ptr() for a in arguments if isinstance(a, Tensor)])
        launch(kernel, grid, *arguments, **constants)

    monkeypatch.setattr(launching, "launch", watch)
    features = randn(3, 5, 4, 4, device=device).requires_grad_()
    similarity_loss(features, torch.tensor([0, 1, 0], device=device), 2, implementation="triton").backward()
    assert [features.data_ptr() in pointers for pointers in launched] == [True, False, False, False, True]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": torch.ones(3, 4)}, r"features of shape \(3, 4\)"),
        ({"features": torch.ones(3, 4, 2, 2, dtype=torch.int64)}, "int64: give a map"),
        ({"features": torch.ones(0, 4, 2, 2), "labels": torch.zeros(0, dtype=torch.int64)}, "at least one image"),
        ({"labels": torch.zeros(4, dtype=torch.int64)}, r"labels of shape \(4,\)"),
        ({"labels": torch.zeros(3, dtype=torch.int32)}, "labels of .*int32"),
        ({"num_classes": 0}, "num_classes = 0"),
        ({"implementation": "cuda"}, "implementation is 'cuda'"),
    ],
)
def test_misfits_are_named(change: dict, message: str) -> None:
    fitting = {"features": torch.ones(3, 4, 2, 2), "labels": torch.zeros(3, dtype=torch.int64), "num_classes": 2}
    with pytest.raises(ValueError, match=message):
        similarity_loss(**fitting | change)
