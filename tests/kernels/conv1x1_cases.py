"""What the tests of the 1x1 convolution share: inputs, the same in float64 through PyTorch's autograd, comparisons."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.grad import conv2d_input, conv2d_weight

from kernels.forms import TOLERANCE, assert_near, randn
from mlaan_kernels.choice import Implementation
from mlaan_kernels.conv1x1 import conv1x1_forward, conv1x1_input_grad, conv1x1_weight_grad
from mlaan_kernels.norm import Norm, Partials

forms = pytest.mark.parametrize("implementation", ["reference", "triton"])


@dataclass(frozen=True)
class Case:
    """One convolution of (images, inputs, *size), with `cotangents` of them stacked in its backward."""

    images: int = 2
    inputs: int = 37
    outputs: int = 65
    size: tuple[int, int] = (7, 7)
    stride: int = 1
    groups: int = 1
    slices: int = 1
    cotangents: int = 1
    norm: bool = True

    def __str__(self) -> str:
        shape = f"N{self.images}-C{self.inputs}-O{self.outputs}-{self.size[0]}x{self.size[1]}"
        numbers = f"s{self.stride}-g{self.groups}-S{self.slices}-G{self.cotangents}"
        return f"{shape}-{numbers}-{'norm' if self.norm else 'plain'}"


@dataclass
class Inputs:
    """x, weight and dy in the case's dtype, the BatchNorm of x or None."""

    x: Tensor
    weight: Tensor
    dy: Tensor
    norm: Norm | None


def make(case: Case, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Inputs:
    height, width = (-(-size // case.stride) for size in case.size)
    x = randn(case.images, case.inputs, *case.size, dtype=dtype, device=device, seed=1) * 2 + 1
    weight = randn(case.outputs, case.inputs // case.groups, 1, 1, dtype=dtype, device=device, seed=2)
    dy = randn(case.cotangents * case.images, case.outputs, height, width, dtype=dtype, device=device, seed=3)
    given = Inputs(x, weight, dy, make_norm(case, dtype, device) if case.norm else None)
    if case.norm:  # the ReLU's side must not hang on the last bit of a float32
        x[activation(given)[0].detach().abs().to(device) < 1e-4] += 1
    return given


def make_norm(case: Case, dtype: torch.dtype, device: str) -> Norm:
    """Weights of both signs; slices differ."""
    exact = torch.promote_types(dtype, torch.float32)
    mean, invstd, weight = (randn(case.slices, case.inputs, dtype=exact, device=device, seed=s) for s in (4, 5, 6))
    invstd = 1 / (1 + invstd.abs())
    return Norm(mean, invstd, weight[:1] * invstd, randn(case.inputs, dtype=exact, device=device, seed=7))


def per_image(values: Tensor, images: int) -> Tensor:
    return values.double().cpu().repeat_interleave(images // len(values), 0)[:, :, None, None]


def assert_sums_near(found: Tensor, wanted: Tensor, squares: Tensor, tolerance: float, name: str) -> None:
    """As `assert_near`, but of sums, whose errors are those of their terms even where the terms cancel.

    Args:
        squares: sums of the terms' squares: what `wanted` squared comes to where the terms' signs are random.
    """
    assert found.shape == wanted.shape, f"{name}: shape {tuple(found.shape)}, not {tuple(wanted.shape)}"
    gap = (found.detach().double().cpu() - wanted).norm()
    size = torch.maximum(wanted.square(), squares).sum().sqrt()
    assert gap <= tolerance * size, f"{name}: off by {gap:.1e} where it has {size:.1e}, allowed {tolerance:.1e} of it"


def check_forward(case: Case, dtype: torch.dtype, device: str, implementation: Implementation) -> None:
    given = make(case, dtype, device)
    y, partials = conv1x1_forward(
        *(given.x, given.weight, given.norm),
        stride=case.stride,
        groups=case.groups,
        statistics=True,
        slices=case.slices,
        implementation=implementation,
    )
    assert y.dtype == dtype
    assert y.is_contiguous(memory_format=torch.channels_last)
    a, weight = activation(given)[1].detach(), given.weight.double().cpu()
    wanted, squares = (F.conv2d(a**n, weight**n, None, case.stride, groups=case.groups) for n in (1, 2))
    assert_sums_near(y, wanted, squares, TOLERANCE[dtype], "y")
    assert partials is not None
    check_partials(partials, y, case.slices)
    alone, nothing = conv1x1_forward(
        *(given.x, given.weight, given.norm),
        stride=case.stride,
        groups=case.groups,
        statistics=False,
        implementation=implementation,
    )
    assert nothing is None
    assert_near(alone, y, 0.0, "y without statistics")


def check_partials(partials: Partials, y: Tensor, slices: int) -> None:
    """Merged by Chan's formula they are mean and variance of y as it is in memory."""
    exact = torch.promote_types(y.dtype, torch.float32)
    assert partials.sums.dtype == partials.squares.dtype == exact
    values = y.double().cpu().unflatten(0, (slices, -1)).permute(0, 1, 3, 4, 2).flatten(1, 3)
    assert partials.rows == values.shape[1]
    tiles = partials.sums.shape[1]
    assert tiles == -(-partials.rows // partials.tile)
    assert partials.sums.shape == partials.squares.shape == (slices, tiles, y.shape[1])
    counts = torch.full((tiles, 1), float(partials.tile), dtype=torch.float64)
    counts[-1] = partials.rows - (tiles - 1) * partials.tile
    sums, squares = partials.sums.double().cpu(), partials.squares.double().cpu()
    mean = sums.sum(1) / partials.rows
    between = (counts * (sums / counts - mean[:, None]).square()).sum(1)
    variance = (squares.sum(1) + between) / partials.rows
    tolerance = 1e-12 if exact == torch.float64 else 1e-5
    for tile in range(tiles):  # each tile by itself: the tiles are where Partials says
        part = values[:, tile * partials.tile : (tile + 1) * partials.tile]
        assert_sums_near(sums[:, tile], part.sum(1), part.square().sum(1), tolerance, f"sums of tile {tile}")
    wanted, rounding = values.var(1, correction=0), tolerance * values.abs().amax(1)  # of one distance from the mean
    allowed = tolerance * wanted + 2 * rounding * wanted.sqrt() + rounding.square()
    assert ((variance - wanted).abs() <= allowed).all(), f"variance: {variance}, not {wanted}"


def activation(given: Inputs) -> tuple[Tensor, Tensor]:
    """What leaves the BatchNorm, and the convolution's input, in float64, the latter part of the former's graph."""
    x = given.x.double().cpu()
    if given.norm is None:
        z = x.requires_grad_()
        return z, z
    mean, _, scale = (per_image(values, len(x)) for values in given.norm[:3])
    z = ((x - mean) * scale + given.norm.bias.double().cpu()[:, None, None]).requires_grad_()
    return z, z.relu()


def check_input_grad(case: Case, dtype: torch.dtype, device: str, implementation: Implementation) -> None:
    given = make(case, dtype, device)
    norm_input = None if given.norm is None else given.x
    dz, sums = conv1x1_input_grad(
        *(given.dy, given.weight, given.x.shape, norm_input, given.norm),
        stride=case.stride,
        groups=case.groups,
        implementation=implementation,
    )
    assert dz.dtype == dtype
    assert dz.is_contiguous(memory_format=torch.channels_last)
    z, a = activation(given)
    weight, dy = given.weight.double().cpu(), given.dy.double().cpu()
    y = F.conv2d(a, weight, None, case.stride, groups=case.groups)
    parts = dy.chunk(case.cotangents)
    wanted = torch.cat([torch.autograd.grad(y, z, part, retain_graph=True)[0] for part in parts])
    squares = conv2d_input(dz.shape, weight**2, dy**2, case.stride, groups=case.groups)
    assert_sums_near(dz, wanted, squares * (wanted != 0), TOLERANCE[dtype], "dz")
    assert (sums is None) == (given.norm is None)
    if sums is None or given.norm is None:
        return
    exact = torch.promote_types(dtype, torch.float32)
    assert sums.dtype == exact
    mean, invstd = (per_image(values, case.images) for values in given.norm[:2])
    normalised = ((given.x.double().cpu() - mean) * invstd).repeat(case.cotangents, 1, 1, 1)
    rounded = dz.double().cpu()
    split = (case.cotangents, case.slices, -1)
    terms = torch.stack([rounded, rounded * normalised], 1).unflatten(0, split)
    wanted, squares = (terms.pow(n).sum((2, 5, 6)) for n in (1, 2))
    assert_sums_near(sums, wanted, squares, 1e-12 if exact == torch.float64 else 1e-5, "sums")


def check_weight_grad(case: Case, dtype: torch.dtype, device: str, implementation: Implementation) -> None:
    given = make(case, dtype, device)
    dy = given.dy[: case.images]
    found = conv1x1_weight_grad(
        *(dy, given.x, given.norm), stride=case.stride, groups=case.groups, implementation=implementation
    )
    assert found.dtype == torch.promote_types(dtype, torch.float32)
    weight, a, exact = given.weight.double().cpu().requires_grad_(), activation(given)[1].detach(), dy.double().cpu()
    y = F.conv2d(a, weight, None, case.stride, groups=case.groups)
    wanted = torch.autograd.grad(y, weight, exact)[0]
    squares = conv2d_weight(a**2, weight.shape, exact**2, case.stride, groups=case.groups)
    assert_sums_near(found, wanted, squares, TOLERANCE[dtype], "dweight")
