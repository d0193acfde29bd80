"""Shift, mirror and normalisation against a loop over pixels; the seeds' choices by their frequencies."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels.forms import TOLERANCE, assert_near, devices
from mlaan_kernels import launching
from mlaan_kernels.choice import Implementation
from mlaan_kernels.normalize_augment import Edge, normalize_augment
from mlaan_kernels.normalize_augment.reference import _hash, choices

forms = pytest.mark.parametrize("implementation", ["reference", "triton"])
edges = pytest.mark.parametrize("edge", ["zero", "reflect"])
flips = pytest.mark.parametrize("flip", [False, True], ids=["", "flip"])
SEEDS = [0, 1, -1, 7, 2**40 + 3, -(2**63), 2**63 - 1, 123456789]


def pixels(*shape: int, device: str = "cpu") -> Tensor:
    random = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, shape, generator=random, dtype=torch.uint8).to(device)


def moments(channels: int, device: str = "cpu") -> tuple[Tensor, Tensor]:
    mean, std = torch.tensor([0.485, 0.456, 0.406, 0.5]), torch.tensor([0.229, 0.224, 0.225, 0.31])
    return mean[:channels].to(device), std[:channels].to(device)


def looped(images: Tensor, seeds: Tensor, pad: int, edge: Edge, flip: bool) -> Tensor:
    """Pads, crops, mirrors and normalises in float64 image by image, as in the engine's own augmentation."""
    _, H, W, C = images.shape
    mean, std = (numbers.double() for numbers in moments(C))
    views = []
    for image, down, right, mirrored in zip(images.cpu(), *choices(seeds.cpu(), pad, flip), strict=True):
        kind = "reflect" if edge == "reflect" else "constant"
        padded = torch.nn.functional.pad(image.permute(2, 0, 1).double()[None], (pad, pad, pad, pad), mode=kind)[0]
        top, left = pad + int(down), pad + int(right)
        view = padded[:, top : top + H, left : left + W]
        views.append(view.flip(2) if mirrored else view)
    return (torch.stack(views) / 255 - mean[:, None, None]) / std[:, None, None]


@forms
@devices
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@edges
@flips
@pytest.mark.parametrize(("size", "pad"), [((9, 11, 3), 4), ((17, 5, 1), 2), ((8, 8, 4), 0), ((5, 90, 2), 1)], ids=str)
def test_views_are_the_loops(
    device: str,
    dtype: torch.dtype,
    implementation: Implementation,
    edge: Edge,
    flip: bool,
    size: tuple[int, ...],
    pad: int,
) -> None:
    images, seeds = pixels(len(SEEDS), *size, device=device), torch.tensor(SEEDS, device=device)
    views = normalize_augment(
        images,
        *moments(size[2], device),
        seeds,
        pad=pad,
        edge=edge,
        flip=flip,
        dtype=dtype,
        implementation=implementation,
    )
    assert views.dtype == dtype
    assert views.is_contiguous(memory_format=torch.channels_last)
    assert_near(views, looped(images, seeds, pad, edge, flip), 1e-6 if dtype == torch.float32 else TOLERANCE[dtype])


def test_the_reference_in_float64() -> None:
    images, seeds = pixels(8, 6, 7, 3), torch.tensor(SEEDS)
    views = normalize_augment(images, *moments(3), seeds, pad=2, flip=True, dtype=torch.float64)
    assert_near(views, looped(images, seeds, 2, "zero", True), 1e-7)


@devices
@edges
@settings(max_examples=15, deadline=None)
@given(
    size=st.tuples(st.integers(1, 4), st.integers(3, 20), st.integers(3, 20), st.integers(1, 4)),
    seed=st.integers(-(2**63), 2**63 - 5),
    pad=st.integers(0, 2),
    flip=st.booleans(),
)
def test_the_forms_agree_bit_for_bit(
    device: str, edge: Edge, size: tuple[int, ...], seed: int, pad: int, flip: bool
) -> None:
    images, seeds = pixels(*size, device=device), seed + torch.arange(size[0], device=device)
    one, other = (
        normalize_augment(
            images,
            *moments(size[3], device),
            seeds,
            pad=pad,
            edge=edge,
            flip=flip,
            dtype=torch.float32,
            implementation=implementation,
        )
        for implementation in ("reference", "triton")
    )
    assert torch.equal(one, other)


@devices
def test_every_pixel_value_agrees_bit_for_bit(device: str) -> None:
    images = torch.arange(256, dtype=torch.uint8, device=device).view(1, 16, 16, 1).expand(1, 16, 16, 3)
    seeds = torch.zeros(1, dtype=torch.int64, device=device)
    one, other = (
        normalize_augment(images, *moments(3, device), seeds, dtype=torch.float32, implementation=implementation)
        for implementation in ("reference", "triton")
    )
    assert torch.equal(one, other)
    if device == "cuda":
        assert torch.equal(one.cpu(), normalize_augment(images.cpu(), *moments(3), seeds.cpu(), dtype=torch.float32))


@forms
@devices
def test_a_view_does_not_depend_on_its_place(device: str, implementation: Implementation) -> None:
    images, seeds = pixels(8, 9, 7, 3, device=device), torch.tensor(SEEDS, device=device)
    order = torch.tensor([5, 0, 3, 3], device=device)
    settings = {"pad": 3, "flip": True, "implementation": implementation}
    views = normalize_augment(images, *moments(3, device), seeds, **settings)
    found = normalize_augment(images[order], *moments(3, device), seeds[order], **settings)
    assert torch.equal(found, views[order])


@devices
def test_strided_images(device: str) -> None:
    images, seeds = pixels(8, 3, 9, 7, device=device).permute(0, 2, 3, 1), torch.tensor(SEEDS, device=device)
    one, other = (
        normalize_augment(x, *moments(3, device), seeds, pad=2, implementation="triton")
        for x in (images, images.contiguous())
    )
    assert torch.equal(one, other)


def test_without_pad_and_flip_nothing_moves() -> None:
    down, right, mirrored = choices(torch.arange(1000), 0, False)
    assert not down.any()
    assert not right.any()
    assert not mirrored.any()


def test_every_shift_is_equally_likely() -> None:
    """16.8 million neighbouring seeds: each of 81 shifts within 1e-4 of its share, mirrored or not."""
    pad, seeds, chunk = 4, 2**24, 2**21
    side = 2 * pad + 1
    counts = torch.zeros(side * side * 2, dtype=torch.int64)
    repeated = 0
    for first in range(0, seeds, chunk):
        down, right, mirrored = choices(torch.arange(first, first + chunk), pad, True)
        choice = ((down + pad) * side + right + pad) * 2 + mirrored
        counts += torch.bincount(choice, minlength=len(counts))
        repeated += int((choice[1:] == choice[:-1]).sum())
    shares = counts.double() / seeds
    assert (shares.view(-1, 2).sum(1) - 1 / side**2).abs().max() < 1e-4
    assert (shares - 1 / len(counts)).abs().max() < 1e-4
    expected = seeds / len(counts)
    assert ((counts - expected) ** 2 / expected).sum() < 235  # chi squared, 161 degrees of freedom: 1 in 10,000
    assert abs(repeated / seeds * len(counts) - 1) < 0.02  # neighbours choose as independently as strangers


@pytest.mark.parametrize("step", [2**32, -1, 2**16, 1000003], ids=str)
def test_distant_and_negative_seeds_serve_as_well(step: int) -> None:
    down, right, mirrored = choices(torch.arange(2**20) * step, 4, True)
    counts = torch.bincount(((down + 4) * 9 + right + 4) * 2 + mirrored, minlength=162)
    expected = 2**20 / 162
    assert ((counts - expected) ** 2 / expected).sum() < 235


def test_the_hash_is_one_to_one_and_mixes() -> None:
    """One to one: over all seeds every shift has the same number of hashes, but for one."""
    x = torch.arange(2**21) * 2047 % 2**32
    hashed = _hash(x)
    assert hashed.min() >= 0
    assert hashed.max() < 2**32
    assert len(hashed.unique()) == len(x)
    for bit in range(32):
        changed = hashed[: 2**14] ^ _hash(x[: 2**14] ^ (1 << bit))
        flipped = torch.stack([(changed >> other & 1).double().mean() for other in range(32)])
        assert (flipped - 0.5).abs().max() < 0.05


@devices
def test_one_launch(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    launched, launch = [], launching.launch
    monkeypatch.setattr(launching, "launch", lambda *a, **k: (launched.append(a), launch(*a, **k)))
    seeds = torch.zeros(2, dtype=torch.int64, device=device)
    normalize_augment(pixels(2, 5, 5, 3, device=device), *moments(3, device), seeds, implementation="triton")
    assert len(launched) == 1


@devices
@edges
def test_the_operator_keeps_its_promises_to_torch(device: str, edge: Edge) -> None:
    from mlaan_kernels.normalize_augment import autograd

    seeds = torch.arange(2, device=device)
    arguments = (pixels(2, 5, 4, 3, device=device), *moments(3, device), seeds, 2, edge == "reflect", True)
    torch.library.opcheck(autograd.normalize_augment, (*arguments, torch.bfloat16))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": torch.ones(2, 4, 4, 3)}, "images of .*float32"),
        ({"images": pixels(2, 4, 4, 5)}, r"images of shape \(2, 4, 4, 5\)"),
        ({"images": pixels(2, 4, 4)}, r"images of shape \(2, 4, 4\)"),
        ({"mean": torch.ones(2)}, r"mean of shape \(2,\)"),
        ({"std": torch.ones(3).double()}, "std of .*float64"),
        ({"seeds": torch.zeros(3, dtype=torch.int64)}, r"seeds of shape \(3,\)"),
        ({"seeds": torch.zeros(2, dtype=torch.int32)}, "seeds of .*int32"),
        ({"seeds": torch.zeros(2, dtype=torch.int64, device="meta")}, "on meta"),
        ({"edge": "mirror"}, "edge is 'mirror'"),
        ({"pad": -1}, "pad = -1"),
        ({"pad": 4, "edge": "reflect"}, "less than the 4x4 images"),
        ({"dtype": torch.uint8}, "dtype is torch.uint8"),
        ({"implementation": "cuda"}, "implementation is 'cuda'"),
    ],
)
def test_misfits_are_named(change: dict, message: str) -> None:
    mean, std = moments(3)
    fitting: dict[str, Any] = {
        "images": pixels(2, 4, 4, 3),
        "mean": mean,
        "std": std,
        "seeds": torch.zeros(2, dtype=torch.int64),
    }
    with pytest.raises(ValueError, match=message):
        normalize_augment(**fitting | change)
