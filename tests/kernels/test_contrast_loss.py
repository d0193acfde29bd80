"""The contrastive loss against a loop in float64 that goes by the definition."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels.batch_losses import LABELS, UPSTREAM, assert_same, every_batch, value_and_gradient
from kernels.forms import TOLERANCE, assert_near, devices, dtypes, randn
from mlaan_kernels import launching
from mlaan_kernels.choice import Implementation
from mlaan_kernels.contrast_loss import contrast_loss

forms = pytest.mark.parametrize("implementation", ["reference", "triton"])
temperatures = pytest.mark.parametrize("temperature", [0.07, 1.0])


def looped(embeddings: Tensor, labels: Tensor, temperature: float) -> Tensor:
    z = [row / row.norm() if row.abs().max() > 0 else 0 * row for row in embeddings]
    losses = []
    for i, anchor in enumerate(z):
        others = [j for j in range(len(z)) if j != i]
        positives = [j for j in others if labels[j] == labels[i]]
        if positives:
            everything = torch.logsumexp(torch.stack([anchor @ z[j] / temperature for j in others]), 0)
            losses.append(sum(everything - anchor @ z[j] / temperature for j in positives) / len(positives))
    return torch.stack(losses).mean() if losses else 0 * embeddings.sum()


@every_batch
@temperatures
def test_the_reference_is_the_loop(labels: Tensor, temperature: float) -> None:
    embeddings = randn(len(labels), 7, dtype=torch.float64)
    reference = lambda x: contrast_loss(x, labels, temperature, implementation="reference")  # noqa: E731
    assert_same(reference, lambda x: looped(x, labels, temperature), embeddings, 1e-10)


@forms
@devices
@dtypes
@every_batch
@temperatures
def test_every_dtype_is_the_loop(
    device: str, dtype: torch.dtype, implementation: Implementation, labels: Tensor, temperature: float
) -> None:
    embeddings = randn(len(labels), 37, dtype=dtype, device=device)
    loss = lambda x: contrast_loss(x, labels.to(device), temperature, implementation=implementation)  # noqa: E731
    assert_same(loss, lambda x: looped(x, labels, temperature), embeddings, TOLERANCE[dtype])


@devices
@dtypes
@pytest.mark.parametrize("shape", [(70, 5), (33, 300), (65, 65)], ids=["N70-D5", "N33-D300", "N65-D65"])
def test_several_blocks(device: str, dtype: torch.dtype, shape: tuple[int, int]) -> None:
    """More images and numbers than a program has in hand, anchors and others; the reference in float64 judges."""
    embeddings, labels = randn(*shape, dtype=dtype, device=device), torch.arange(shape[0], device=device) ** 2 % 50
    judge = lambda x: contrast_loss(x, labels.cpu(), implementation="reference")  # noqa: E731
    assert_same(lambda x: contrast_loss(x, labels, implementation="triton"), judge, embeddings, TOLERANCE[dtype])


@devices
@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_lengths_beyond_their_squares(device: str, scale: float) -> None:
    """A length's square is no float32."""
    embeddings, labels = randn(6, 5, device=device), torch.tensor([0, 1, 0, 1, 2, 0], device=device)
    loss = lambda x: contrast_loss(x, labels, implementation="triton")  # noqa: E731
    value, gradient = value_and_gradient(loss, embeddings)
    scaled_value, scaled_gradient = value_and_gradient(loss, embeddings * scale)
    assert_near(scaled_value, value, 1e-5)
    assert_near(scaled_gradient * scale, gradient, 1e-5)


@devices
def test_sharp_logits_stay_finite(device: str) -> None:
    """exp(1 / t) is no float32, nor is what is left of unlikely others."""
    embeddings, labels = randn(6, 5, device=device), torch.tensor([0, 1, 0, 1, 2, 0], device=device)
    loss = lambda x: contrast_loss(x, labels, 1e-3, implementation="triton")  # noqa: E731
    assert_same(loss, lambda x: looped(x, labels, 1e-3), embeddings, 1e-3, 1e-4)


@forms
@devices
@dtypes
@pytest.mark.parametrize("labels", LABELS)
def test_zeros_have_no_direction_and_no_gradient(
    device: str, dtype: torch.dtype, implementation: Implementation, labels: str
) -> None:
    batch = torch.tensor(LABELS[labels], device=device)
    loss = lambda x: contrast_loss(x, batch, 0.1, implementation=implementation)  # noqa: E731
    value, gradient = value_and_gradient(loss, torch.zeros(len(batch), 6, dtype=dtype, device=device))
    assert_near(value, looped(torch.zeros(len(batch), 6), batch, 0.1), 1e-5)
    assert gradient.eq(0).all()
    embeddings = randn(len(batch), 6, dtype=dtype, device=device)
    embeddings[0] = 0
    value, gradient = value_and_gradient(loss, embeddings)
    assert gradient[0].eq(0).all()
    assert gradient.isfinite().all()
    assert_near(value, looped(embeddings.double().cpu(), batch, 0.1), 1e-5)


@forms
@devices
@pytest.mark.parametrize("labels", ["all_different", "one_image"])
def test_without_any_anchor_it_is_nothing(device: str, implementation: Implementation, labels: str) -> None:
    batch = torch.tensor(LABELS[labels], device=device)
    embeddings = randn(len(batch), 7, device=device)
    value, gradient = value_and_gradient(lambda x: contrast_loss(x, batch, implementation=implementation), embeddings)
    assert value == 0
    assert gradient.eq(0).all()


@forms
@devices
def test_autocast_changes_nothing(device: str, implementation: Implementation) -> None:
    embeddings, labels = randn(8, 5, device=device), torch.tensor(LABELS["random"], device=device)
    loss = lambda x: contrast_loss(x, labels, implementation=implementation)  # noqa: E731
    wanted, wanted_gradient = value_and_gradient(loss, embeddings)
    embeddings.requires_grad_()
    with torch.autocast(device, torch.bfloat16):
        found = loss(embeddings)
    assert torch.equal(found, wanted)
    assert torch.equal(torch.autograd.grad(UPSTREAM * found, [embeddings])[0], wanted_gradient)


@devices
def test_layouts(device: str) -> None:
    embeddings = randn(8, 5, device=device)
    labels = torch.tensor(LABELS["random"] * 2, device=device)[::2]  # strided
    loss = lambda x: contrast_loss(x, labels, implementation="triton")  # noqa: E731
    for wanted, found in zip(
        value_and_gradient(loss, embeddings), value_and_gradient(loss, embeddings.T.contiguous().T), strict=True
    ):
        assert torch.equal(found, wanted)


@devices
def test_logits_are_never_in_memory(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, launch = [], launching.launch

    def watch(kernel, grid, *arguments, **constants):
        sizes.append(max(a.numel() for a in arguments if isinstance(a, Tensor)))
        launch(kernel, grid, *arguments, **constants)

    monkeypatch.setattr(launching, "launch", watch)
    embeddings = randn(40, 5, device=device).requires_grad_()
    contrast_loss(embeddings, torch.arange(40, device=device) % 7, implementation="triton").backward()
    assert len(sizes) == 4
    assert max(sizes) == 40 * 32  # the rows, padded: 40 * 40 logits are more


@settings(max_examples=10, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 70), st.integers(2, 80)),
    classes=st.integers(1, 60),
    temperature=st.floats(0.05, 2),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)
@devices
def test_any_shape(device: str, shape: tuple[int, int], classes: int, temperature: float, dtype: torch.dtype) -> None:
    embeddings, labels = randn(*shape, dtype=dtype, device=device), torch.arange(shape[0], device=device) % classes
    judge = lambda x: contrast_loss(x, labels.cpu(), temperature, implementation="reference")  # noqa: E731
    value, gradient = value_and_gradient(
        lambda x: contrast_loss(x, labels, temperature, implementation="triton"), embeddings
    )
    wanted, wanted_gradient = value_and_gradient(judge, embeddings.double().cpu())
    assert abs(value.item() - wanted.item()) < 1e-4
    gap = (gradient.double().cpu() - wanted_gradient).norm() / (wanted_gradient.norm() + 1e-2)
    assert gap < max(1e-4, TOLERANCE[dtype])


@devices
@dtypes
def test_the_operators_keep_their_promises_to_torch(device: str, dtype: torch.dtype) -> None:
    from mlaan_kernels.contrast_loss import autograd

    embeddings, labels = randn(3, 5, dtype=dtype, device=device), torch.tensor([0, 1, 0], device=device)
    torch.library.opcheck(autograd.forward, (embeddings, labels, 0.1))
    _, *saved = autograd.forward(embeddings, labels, 0.1)
    torch.library.opcheck(autograd.backward, (torch.ones((), device=device), *saved, labels, 0.1, 5, dtype))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"embeddings": torch.ones(3, 4, 1)}, r"embeddings of shape \(3, 4, 1\)"),
        ({"embeddings": torch.ones(3, 4, dtype=torch.int64)}, "int64: give rows"),
        ({"embeddings": torch.ones(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}, "at least one number"),
        ({"labels": torch.zeros(4, dtype=torch.int64)}, r"labels of shape \(4,\)"),
        ({"labels": torch.zeros(3, dtype=torch.int32)}, "labels of .*int32"),
        ({"temperature": 0.0}, "temperature = 0.0"),
        ({"temperature": float("nan")}, "temperature = nan"),
        ({"implementation": "cuda"}, "implementation is 'cuda'"),
    ],
)
def test_misfits_are_named(change: dict, message: str) -> None:
    fitting = {"embeddings": torch.ones(3, 4), "labels": torch.zeros(3, dtype=torch.int64), "temperature": 0.1}
    with pytest.raises(ValueError, match=message):
        contrast_loss(**fitting | change)
