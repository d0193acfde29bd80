"""The mean of patches against a loop over parts in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels.forms import TOLERANCE, assert_near, devices, dtypes, randn
from mlaan_kernels import launching
from mlaan_kernels.choice import Implementation
from mlaan_kernels.patch_mean import patch_mean

Shape = tuple[int, int, int, int]
forms = pytest.mark.parametrize("implementation", ["reference", "triton"])
CASES = [
    ((1, 3, 7, 7), 2),
    ((2, 37, 13, 17), 2),
    ((2, 16, 8, 6), 2),
    ((3, 65, 1, 1), 1),
    ((2, 5, 1, 1), 3),
    ((1, 130, 3, 2), 5),
    ((2, 24, 9, 10), 3),
    ((1, 8, 5, 4), 1),
]
cases = pytest.mark.parametrize(
    ("shape", "patches"), CASES, ids=[f"N{n}-C{c}-{h}x{w}-P{patches}" for (n, c, h, w), patches in CASES]
)


def looped(h: Tensor, upstream: Tensor | None, patches: int) -> tuple[Tensor, Tensor]:
    """Mean and gradient, pixel by pixel of a part."""
    N, C, H, W = h.shape
    height, width = -(-H // patches), -(-W // patches)
    mean, gradient = torch.zeros(N, C, height, width, dtype=torch.float64), torch.zeros(h.shape, dtype=torch.float64)
    for y in range(height):
        for x in range(width):
            for i in range(patches):
                for j in range(patches):
                    Y, X = y + i * H // patches, x + j * W // patches
                    mean[:, :, y, x] += h[:, :, Y, X].double().cpu() / patches**2
                    if upstream is not None:
                        gradient[:, :, Y, X] += upstream[:, :, y, x].double().cpu() / patches**2
    return mean, gradient


@forms
@devices
@dtypes
@cases
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format], ids=["nhwc", "nchw"])
def test_value_and_gradient(
    device: str,
    dtype: torch.dtype,
    implementation: Implementation,
    shape: Shape,
    patches: int,
    layout: torch.memory_format,
) -> None:
    h = randn(*shape, dtype=dtype, device=device).contiguous(memory_format=layout).requires_grad_()
    found = patch_mean(h, patches, implementation=implementation)
    upstream = randn(*found.shape, dtype=dtype, device=device, seed=1).contiguous(memory_format=layout)
    (gradient,) = torch.autograd.grad(found, [h], upstream)
    mean, wanted = looped(h.detach(), upstream, patches)
    assert found.dtype == gradient.dtype == dtype
    assert_near(found, mean, TOLERANCE[dtype], "mean")
    assert_near(gradient, wanted, TOLERANCE[dtype], "gradient")


def test_the_reference_in_float64() -> None:
    h = randn(2, 3, 7, 5, dtype=torch.float64).requires_grad_()
    assert_near(patch_mean(h, 3), looped(h.detach(), None, 3)[0], 1e-14)
    assert torch.autograd.gradcheck(lambda x: patch_mean(x, 3), h)


def test_the_reference_rounds_once() -> None:
    """Sixteen parts in bfloat16: each sum rounded would be off by several times as much."""
    h = randn(2, 8, 16, 16, dtype=torch.bfloat16)
    wanted = looped(h, None, 4)[0]
    assert torch.equal(patch_mean(h, 4, implementation="reference"), wanted.float().bfloat16())


@devices
def test_a_grown_batch_stride(device: str) -> None:
    """Tokens behind a class token, seen as a map."""
    tokens = randn(2, 10, 5, device=device)
    h = tokens[:, 1:].transpose(1, 2).unflatten(2, (3, 3))
    assert_near(patch_mean(h, 2, implementation="triton"), looped(h, None, 2)[0], 1e-5)


@devices
def test_an_empty_batch(device: str) -> None:
    h = randn(0, 3, 4, 4, device=device).requires_grad_()
    mean = patch_mean(h, 2, implementation="triton")
    assert mean.shape == (0, 3, 2, 2)
    mean.sum().backward()


def test_shapes_alone() -> None:
    assert patch_mean(torch.empty(2, 3, 7, 5, device="meta"), 2).shape == (2, 3, 4, 3)


@settings(max_examples=15, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 40), st.integers(1, 9), st.integers(1, 9)),
    patches=st.integers(1, 4),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)
@devices
def test_any_shape(device: str, shape: Shape, patches: int, dtype: torch.dtype) -> None:
    h = randn(*shape, dtype=dtype, device=device).requires_grad_()
    found = patch_mean(h, patches, implementation="triton")
    (gradient,) = torch.autograd.grad(found, [h], torch.ones_like(found))
    mean, wanted = looped(h.detach(), torch.ones_like(found), patches)
    assert_near(found, mean, 4 * TOLERANCE[dtype])  # a mean may be small against what it is of
    assert_near(gradient, wanted, TOLERANCE[dtype])


@devices
def test_one_launch_each_and_nothing_is_saved(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    launched, saved, launch = [], [], launching.launch
    monkeypatch.setattr(launching, "launch", lambda *a, **k: (launched.append(a[0].__name__), launch(*a, **k)))
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        mean = patch_mean(randn(1, 3, 4, 4, device=device).requires_grad_(), 2, implementation="triton")
    mean.backward(torch.ones_like(mean))
    assert launched == ["forward_kernel", "backward_kernel"]
    assert not saved


@devices
@dtypes
def test_the_operators_keep_their_promises_to_torch(device: str, dtype: torch.dtype) -> None:
    from mlaan_kernels.patch_mean import autograd

    h = randn(2, 3, 5, 4, dtype=dtype, device=device)
    torch.library.opcheck(autograd.forward, (h, 2))
    torch.library.opcheck(autograd.backward, (autograd.forward(h, 2), 2, 5, 4))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"h": torch.ones(3, 4, 2)}, r"h of shape \(3, 4, 2\)"),
        ({"h": torch.ones(3, 4, 2, 2, dtype=torch.uint8)}, "uint8 is no map"),
        ({"patches": 0}, "patches = 0"),
        ({"implementation": "cuda"}, "implementation is 'cuda'"),
    ],
)
def test_misfits_are_named(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        patch_mean(**{"h": torch.ones(3, 4, 2, 2), "patches": 2} | change)
