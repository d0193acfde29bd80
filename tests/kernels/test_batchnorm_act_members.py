"""Layers side by side whose outputs are added, against as many torch.nn.BatchNorm2d in float64 under autograd."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kernels.batchnorm_cases import PARTS, Found, assert_found, few_programs, forms
from kernels.forms import TOLERANCE, assert_near, devices, dtypes, randn
from mlaan_kernels.batchnorm_act import batch_norm, input_grad, normalise, reduce, statistics
from mlaan_kernels.norm import Norm

__all__ = ["few_programs"]

pytestmark = pytest.mark.usefixtures("few_programs")
MEMBERS = 2
residuals = pytest.mark.parametrize("residual", ["none", "plain", "norm"])


@dataclass(frozen=True)
class Joined:
    """Layers of `width` channels, `runs` times two that share an input.

    Attributes:
        residual, cotangents: as in Case.
    """

    images: int
    runs: int
    width: int
    height: int
    last: int
    residual: str = "norm"
    cotangents: tuple[str, ...] = ("both",)
    slices: int = 1
    dtype: torch.dtype = torch.float32
    device: str = "cpu"

    def __str__(self) -> str:
        size = f"N{self.images}-{self.runs}x2xC{self.width}-{self.height}x{self.last}"
        return f"{size}-{self.residual}-{'+'.join(self.cotangents)}-S{self.slices}"

    @property
    def channels(self) -> int:
        return self.runs * MEMBERS * self.width

    def map(self, channels: int, seed: int) -> Tensor:
        """Channels differ in mean and scale, so that mixing them up shows."""
        x = randn(self.images, channels, self.height, self.last, dtype=torch.float64, seed=seed)
        slope, shift = (torch.linspace(*ends, channels)[:, None, None] for ends in ((0.5, 2), (-1, 1)))
        return (x * slope + shift).to(self.device, self.dtype).contiguous(memory_format=torch.channels_last)

    def maps(self) -> tuple[Tensor, Tensor | None, list[Tensor | None], list[Tensor | None]]:
        """c, residual, and the cotangents' parts."""
        out = self.channels // MEMBERS
        residual = {"none": None, "plain": self.map(out, 2), "norm": self.map(self.channels, 2)}[self.residual]
        wide = torch.float64 if self.dtype == torch.float64 else torch.float32
        dense, pooled = (
            [make(g) if PARTS[kind][part] else None for g, kind in enumerate(self.cotangents)]
            for part, make in enumerate(
                (
                    lambda g: self.map(out, 10 + g),
                    lambda g: 10 * randn(self.images, out, dtype=wide, device=self.device, seed=20 + g),
                )
            )
        )
        return self.map(self.channels, 1), residual, dense, pooled

    def layers(self, seed: int) -> list[nn.BatchNorm2d]:
        kept = torch.float64 if self.dtype == torch.float64 else torch.float32
        found = []
        for i in range(self.runs * MEMBERS):
            layer = nn.BatchNorm2d(self.width, eps=1e-3, track_running_stats=False).to(self.device, kept)
            nn.init.normal_(layer.weight, generator=torch.Generator(self.device).manual_seed(seed + 2 * i))
            nn.init.normal_(layer.bias, generator=torch.Generator(self.device).manual_seed(seed + 2 * i + 1))
            found.append(layer)
        return found


def by_parts(case: Joined, implementation: Any) -> Found:
    form: dict[str, Any] = {"implementation": implementation}
    layout: dict[str, Any] = {"members": MEMBERS, "width": case.width, **form}
    c, residual, dense, pooled = case.maps()
    norm, other = batch_norm(case.layers(30), c, slices=case.slices, **form), None
    if residual is not None and case.residual == "norm":
        other = batch_norm(case.layers(60), residual, slices=case.slices, **form)
    y, mean = normalise(c, norm, residual, other, pool=True, **layout)
    nothing, alone = normalise(c, norm, residual, other, pool=True, write=False, **layout)
    assert mean is not None
    assert alone is not None
    assert torch.equal(mean, alone)
    assert nothing.numel() == 0
    assert torch.equal(y, normalise(c, norm, residual, other, **layout)[0])
    sums, dz = reduce(dense, pooled, c, norm, residual=residual, residual_norm=other, **layout)
    dc = input_grad(dz, c, norm, sums[:, :, :2], **form)
    found = {"y": y, "pooled": mean}
    count = len(dense)
    for g, (one, incoming) in enumerate(zip(dc.chunk(count), dz.chunk(count), strict=True)):
        found |= {f"dc{g}": one, f"dbias{g}": sums[g, :, 0].sum(0), f"dweight{g}": sums[g, :, 1].sum(0)}
        if case.residual == "plain":  # each member's, which the block's backward adds up
            found[f"dresidual{g}"] = incoming.double().unflatten(1, (-1, MEMBERS, case.width)).sum(2).flatten(1, 2)
    if residual is not None and other is not None:
        back = input_grad(dz, residual, other, sums[:, :, ::2], **form)
        for g, one in enumerate(back.chunk(count)):
            found |= {f"dresidual{g}": one, f"other_dweight{g}": sums[g, :, 2].sum(0)}
    return found


def in_float64(case: Joined) -> Found:
    c, residual, dense, pooled = case.maps()
    leaf = c.double().cpu().requires_grad_()
    added = None if residual is None else residual.double().cpu().requires_grad_()
    layers, others = ([layer.double().cpu() for layer in case.layers(seed)] for seed in (30, 60))

    def normalised(x: Tensor, side_by_side: list[nn.BatchNorm2d]) -> list[Tensor]:
        return [
            torch.cat([layer(part) for part in one.chunk(case.slices)])
            for layer, one in zip(side_by_side, x.split(case.width, 1), strict=True)
        ]

    before = normalised(leaf, layers)
    if added is not None and case.residual == "norm":
        before = [z + r for z, r in zip(before, normalised(added, others), strict=True)]
    elif added is not None:
        shared = [part for part in added.split(case.width, 1) for _ in range(MEMBERS)]
        before = [z + r for z, r in zip(before, shared, strict=True)]
    alive = [z.relu() for z in before]
    y = torch.cat([alive[i] + alive[i + 1] for i in range(0, len(alive), MEMBERS)], 1)
    mean = y.mean((2, 3))
    found = {"y": y.detach(), "pooled": mean.detach()}
    weights, biases = [layer.weight for layer in layers], [layer.bias for layer in layers]
    leaves = {"dc": [leaf], "dweight": weights, "dbias": biases}
    leaves |= {} if added is None else {"dresidual": [added]}
    leaves |= {"other_dweight": [layer.weight for layer in others]} if case.residual == "norm" else {}
    for g, (one, spread) in enumerate(zip(dense, pooled, strict=True)):
        loss = torch.zeros((), dtype=torch.float64)
        loss = loss if one is None else loss + (one.double().cpu() * y).sum()
        loss = loss if spread is None else loss + (spread.double().cpu() * mean).sum()
        for name, some in leaves.items():
            found[f"{name}{g}"] = torch.cat(torch.autograd.grad(loss, some, retain_graph=True))
    return found


CASES = [
    *(Joined(2, 2, 5, 3, 5, residual, (kind,)) for residual in ("none", "plain", "norm") for kind in PARTS),
    *(Joined(2, 1, 37, 7, 7, residual, ("pooled", "both")) for residual in ("none", "plain", "norm")),
    *(Joined(4, 3, 16, 1, 1, residual, ("dense", "pooled"), slices=2) for residual in ("plain", "norm")),
    Joined(1, 1, 65, 13, 3, "norm", ("dense",)),
]


@devices
@forms
@pytest.mark.parametrize("case", CASES, ids=map(str, CASES))
def test_members(device: str, implementation: str, case: Joined) -> None:
    case = Joined(**{**vars(case), "device": device})
    assert_found(by_parts(case, implementation), in_float64(case), TOLERANCE[torch.float32])


@pytest.mark.parametrize("case", CASES, ids=map(str, CASES))
def test_reference_in_float64(case: Joined) -> None:
    case = Joined(**{**vars(case), "dtype": torch.float64})
    assert_found(by_parts(case, "reference"), in_float64(case), TOLERANCE[torch.float64])


@devices
@forms
@dtypes
@residuals
def test_dtypes(device: str, implementation: str, dtype: torch.dtype, residual: str) -> None:
    case = Joined(2, 2, 5, 3, 5, residual, ("both",), dtype=dtype, device=device)
    assert_found(by_parts(case, implementation), in_float64(case), TOLERANCE[dtype])


@devices
@forms
def test_nan_comes_through_both_relus(device: str, implementation: Any) -> None:
    case = Joined(2, 1, 5, 3, 3, "none", device=device)
    c = case.maps()[0]
    c[0, 7, 0, 0] = torch.nan
    norm = batch_norm(case.layers(30), c, implementation=implementation)
    y, _ = normalise(c, norm, members=MEMBERS, width=5, implementation=implementation)
    assert y[:, 2].isnan().all()
    assert not y[:, 1].isnan().any()


@devices
@forms
def test_several_batchnorms_run_as_one(device: str, implementation: Any) -> None:
    """From the map and from its sums; one in a list is that one."""
    layers = [nn.BatchNorm2d(width, track_running_stats=False).to(device) for width in (5, 3, 11)]
    for i, layer in enumerate(layers):
        with torch.no_grad():
            layer.weight.copy_(randn(len(layer.weight), seed=2 * i))
            layer.bias.copy_(randn(len(layer.bias), seed=2 * i + 1))
    c = randn(4, 19, 3, 5, device=device)
    form: dict[str, Any] = {"slices": 2, "implementation": implementation}
    parts = [batch_norm(layer, x, **form) for layer, x in zip(layers, c.split([5, 3, 11], 1), strict=True)]
    wanted = Norm(*(torch.cat(numbers, -1) for numbers in zip(*parts, strict=True)))
    for source in (c, statistics(c, **form)):
        found = batch_norm(layers, source, **form)
        for name, one, other in zip(Norm._fields, found, wanted, strict=True):
            assert_near(one, other, TOLERANCE[torch.float32], name)
    tracked, alone = (nn.BatchNorm2d(19, momentum=0.3).to(device) for _ in range(2))
    found, wanted = batch_norm([tracked], c, **form), batch_norm(alone, c, **form)
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))
    assert all(torch.equal(one, other) for one, other in zip(tracked.buffers(), alone.buffers(), strict=True))
    assert tracked.num_batches_tracked == 2


@forms
def test_refused(implementation: Any) -> None:
    form: dict[str, Any] = {"implementation": implementation}
    c = randn(2, 12, 3, 3)
    layer = nn.BatchNorm2d(6, track_running_stats=False)
    norm = batch_norm([layer, layer], c, **form)
    for members, width, words in (
        (2, None, "members = 2 of width = None do not divide c's 12 channels"),
        (2, 4, "members = 2 of width = 4 do not divide"),
        (1, 5, "members = 1 of width = 5 do not divide"),
        (0, 6, "members = 0: a layer alone is 1"),
        (3, 4, "members = 3: .* twin are 2"),
    ):
        for run in (lambda **of: normalise(c, norm, **of), lambda **of: reduce([c], [None], c, norm, **of)):
            with pytest.raises(ValueError, match=words):
                run(members=members, width=width, **form)
    layout: dict[str, Any] = {"members": 2, "width": 3, **form}
    with pytest.raises(ValueError, match="relu = False has none"):
        normalise(c, norm, relu=False, **layout)
    with pytest.raises(ValueError, match=r"residual of \(2, 12, 3, 3\).* does not fit c of \(2, 6, 3, 3\)"):
        normalise(c, norm, c, **layout)
    with pytest.raises(ValueError, match=r"residual of \(2, 6, 3, 3\).* does not fit c of \(2, 12, 3, 3\)"):
        normalise(c, norm, c[:, :6], norm, **layout)
    with pytest.raises(ValueError, match=r"dense\[0\] of \(2, 12, 3, 3\).* does not fit c of \(2, 6, 3, 3\)"):
        reduce([c], [None], c, norm, **layout)
    with pytest.raises(ValueError, match=r"pooled\[0\] of \(2, 12\) does not fit"):
        reduce([None], [randn(2, 12)], c, norm, **layout)
    with pytest.raises(ValueError, match="write = False"):
        reduce([c[:, :6]], [None], c, norm, write=False, **layout)
    for wrong, words in (
        ([layer, nn.BatchNorm2d(6)], "without running statistics"),
        ([layer, nn.BatchNorm2d(6, eps=1e-3, track_running_stats=False)], "equal eps"),
        ([layer, nn.BatchNorm2d(5, track_running_stats=False)], "11 channels does not fit c with 12"),
        ([layer, nn.BatchNorm2d(6, affine=False, track_running_stats=False)], "affine=True"),
        ([], "has no weight and bias"),
    ):
        with pytest.raises(ValueError, match=words):
            batch_norm(wrong, c, **form)
