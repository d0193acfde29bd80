"""What the tests of BatchNorm + residual + ReLU share: inputs, the layer's parts put together, the same in float64."""

import copy
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kernels.forms import assert_near, randn
from mlaan_kernels.batchnorm_act import batch_norm, blocks, input_grad, normalise, reduce

Found = dict[str, Tensor]
forms = pytest.mark.parametrize("implementation", ["reference", "triton"])
PARTS = {"dense": (True, False), "pooled": (False, True), "both": (True, True)}


@dataclass(frozen=True)
class Case:
    """One use of the operator.

    Attributes:
        residual: "none", "plain", or "norm": normalised by a BatchNorm of its own.
        cotangents: the parts of each that comes in: "dense", "pooled" or "both".
    """

    shape: tuple[int, int, int, int]
    residual: str = "none"
    cotangents: tuple[str, ...] = ("dense",)
    relu: bool = True
    slices: int = 1
    training: bool = True
    dtype: torch.dtype = torch.float32
    device: str = "cpu"

    def on(self, device: str, dtype: torch.dtype = torch.float32) -> "Case":
        return replace(self, device=device, dtype=dtype)

    def __str__(self) -> str:
        n, c, h, w = self.shape
        words = [f"N{n}-C{c}-{h}x{w}", self.residual, "+".join(self.cotangents), "relu" if self.relu else "linear"]
        return "-".join([*words, f"S{self.slices}"])


@dataclass
class Inputs:
    """Of one case; the layers are fresh."""

    c: Tensor
    residual: Tensor | None
    dense: list[Tensor | None]
    pooled: list[Tensor | None]
    layer: nn.BatchNorm2d
    other: nn.BatchNorm2d


def make_layer(channels: int, seed: int, training: bool = True, dtype: torch.dtype = torch.float32) -> nn.BatchNorm2d:
    """Weights of both signs, running statistics that are not those of a new layer."""
    layer = nn.BatchNorm2d(channels, eps=1e-3, momentum=0.3).to(dtype)
    with torch.no_grad():
        layer.weight.copy_(randn(channels, seed=seed))
        layer.bias.copy_(randn(channels, seed=seed + 1))
        assert layer.running_mean is not None
        assert layer.running_var is not None
        layer.running_mean.copy_(randn(channels, seed=seed + 2))
        layer.running_var.copy_(randn(channels, seed=seed + 3).square() + 0.5)
    return layer.train(training)


def make_inputs(case: Case) -> Inputs:
    options: dict[str, Any] = {"dtype": case.dtype, "device": case.device}
    channels = case.shape[1]
    kept = torch.float64 if case.dtype == torch.float64 else torch.float32
    # Channels differ in mean and scale, so that mixing them up shows.
    c = randn(*case.shape, seed=1, dtype=torch.float64)
    c = (c * torch.linspace(0.5, 2, channels)[:, None, None] + torch.linspace(-3, 3, channels)[:, None, None]).to(
        **options
    )
    return Inputs(
        c,
        None if case.residual == "none" else randn(*case.shape, seed=2, **options),
        [randn(*case.shape, seed=10 + g, **options) if PARTS[k][0] else None for g, k in enumerate(case.cotangents)],
        [
            10 * randn(*case.shape[:2], seed=20 + g, dtype=kept, device=case.device) if PARTS[k][1] else None
            for g, k in enumerate(case.cotangents)
        ],
        make_layer(channels, 30, case.training, kept).to(case.device),
        make_layer(channels, 40, case.training, kept).to(case.device),
    )


def in_parts(case: Case, inputs: Inputs, implementation: Any, *, inplace: bool = False) -> Found:
    """Forward and backward by the operator's parts; moves the layers' running statistics."""
    form: dict[str, Any] = {"implementation": implementation}
    c, residual = inputs.c, inputs.residual
    norm = batch_norm(inputs.layer, c, slices=case.slices, **form)
    other = None
    if case.residual == "norm":
        assert residual is not None
        other = batch_norm(inputs.other, residual, slices=case.slices, **form)
    y, pooled = normalise(c, norm, residual, other, relu=case.relu, pool=True, **form)
    assert pooled is not None
    sums, dz = reduce(
        *(inputs.dense, inputs.pooled, c, norm),
        residual=residual if other or case.relu else None,
        residual_norm=other,
        relu=case.relu,
        **form,
    )
    found = {"y": y, "pooled": pooled} | _state("", inputs.layer)
    residual_grad = dz
    if other is not None:
        assert residual is not None
        used = sums[:, :, ::2] if case.training else None
        residual_grad = input_grad(dz, residual, other, used, **form)
        found |= _state("other_", inputs.other)
    dz = dz.clone(memory_format=torch.preserve_format)
    dc = input_grad(dz, c, norm, sums[:, :, :2] if case.training else None, inplace=inplace, **form)
    count = len(case.cotangents)
    for g, (one, back) in enumerate(zip(dc.chunk(count), residual_grad.chunk(count), strict=True)):
        total = sums[g].sum(0)
        found |= {f"dc{g}": one, f"dbias{g}": total[0], f"dweight{g}": total[1]}
        if residual is not None:
            found[f"dresidual{g}"] = back
        if other is not None:
            found |= {f"other_dbias{g}": total[0], f"other_dweight{g}": total[2]}
    return found


def in_float64(case: Case, inputs: Inputs) -> Found:
    """The same by torch.nn.BatchNorm2d and autograd, on the CPU; `inputs` stay as they are."""
    layer, other = (copy.deepcopy(one).double().cpu() for one in (inputs.layer, inputs.other))
    c = inputs.c.detach().double().cpu().requires_grad_()
    residual = None if inputs.residual is None else inputs.residual.detach().double().cpu().requires_grad_()
    z = torch.cat([layer(part) for part in c.chunk(case.slices)])
    if residual is not None:
        plain = case.residual == "plain"
        z = z + (residual if plain else torch.cat([other(part) for part in residual.chunk(case.slices)]))
    y = z.relu() if case.relu else z
    pooled = y.mean((2, 3))
    leaves = {"dc": c, "dweight": layer.weight, "dbias": layer.bias}
    leaves |= {} if residual is None else {"dresidual": residual}
    leaves |= {"other_dweight": other.weight, "other_dbias": other.bias} if case.residual == "norm" else {}
    found = {"y": y.detach(), "pooled": pooled.detach()} | _state("", layer)
    found |= _state("other_", other) if case.residual == "norm" else {}
    for g, (dense, spread) in enumerate(zip(inputs.dense, inputs.pooled, strict=True)):
        loss = torch.zeros((), dtype=torch.float64)
        loss = loss if dense is None else loss + (dense.double().cpu() * y).sum()
        loss = loss if spread is None else loss + (spread.double().cpu() * pooled).sum()
        grads = torch.autograd.grad(loss, list(leaves.values()), retain_graph=True)
        found |= {f"{name}{g}": grad for name, grad in zip(leaves, grads, strict=True)}
    return found


@pytest.fixture
def few_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small maps then have tiles of several blocks, and several tiles, as large maps do."""
    monkeypatch.setattr(blocks, "PROGRAMS", 6)


def assert_case(case: Case, implementation: Any, tolerance: float, *, inplace: bool = False) -> None:
    """Every output, gradient and running statistic of the parts against float64."""
    inputs = make_inputs(case)
    wanted = in_float64(case, inputs)
    assert_found(in_parts(case, inputs, implementation, inplace=inplace), wanted, tolerance)


def assert_found(found: Found, wanted: Found, tolerance: float) -> None:
    assert found.keys() == wanted.keys()
    for name in wanted:
        assert_near(found[name], wanted[name], tolerance, name)


def _state(prefix: str, layer: nn.BatchNorm2d) -> Found:
    return {prefix + name: buffer.detach().clone() for name, buffer in layer.named_buffers()}
