"""The operator's parts put together by hand: slices, cotangents, pooling, normalised residuals, evaluation mode."""

import copy
from typing import Any

import pytest
import torch

from kernels.batchnorm_cases import (
    PARTS,
    Case,
    assert_case,
    few_programs,
    forms,
    in_parts,
    make_inputs,
    make_layer,
)
from kernels.forms import TOLERANCE, assert_near, devices, dtypes, randn
from mlaan_kernels.batchnorm_act import batch_norm, blocks, input_grad, merge, normalise, reduce, statistics
from mlaan_kernels.norm import Partials

__all__ = ["few_programs"]

pytestmark = pytest.mark.usefixtures("few_programs")
SMALL, ODD = (2, 19, 5, 7), (3, 37, 3, 3)
KINDS = [(one,) for one in PARTS] + [(one, other) for one in PARTS for other in PARTS]
CASES = [
    *(Case(SMALL, "norm", kinds) for kinds in KINDS),
    *(Case(SMALL, residual, ("both", "pooled"), relu) for residual in ("none", "plain") for relu in (False, True)),
    *(Case((6, 19, 3, 3), residual, ("dense", "both"), True, 3) for residual in ("none", "plain", "norm")),
    Case((2, 130, 7, 7), "norm", ("pooled", "dense"), slices=2),
    Case((2, 65, 1, 1), "norm", ("both",)),
    Case((1, 3, 13, 17), "norm", ("both", "dense")),
    *(Case((4, 19, 3, 3), residual, ("both", "dense"), training=False) for residual in ("none", "plain", "norm")),
]


@devices
@forms
@pytest.mark.parametrize("case", CASES, ids=[f"{case}-{'train' if case.training else 'eval'}" for case in CASES])
def test_parts(device: str, implementation: str, case: Case) -> None:
    assert_case(case.on(device), implementation, TOLERANCE[torch.float32])


@pytest.mark.parametrize("case", CASES, ids=[f"{case}-{'train' if case.training else 'eval'}" for case in CASES])
def test_reference_in_float64(case: Case) -> None:
    assert_case(case.on("cpu", torch.float64), "reference", TOLERANCE[torch.float64])


@devices
@forms
@dtypes
def test_dtypes(device: str, implementation: str, dtype: torch.dtype) -> None:
    case = Case(SMALL, "norm", ("both", "dense")).on(device, dtype)
    assert_case(case, implementation, TOLERANCE[dtype], inplace=True)


@devices
def test_split_into_many_programs(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As few rows for each as there are: tiles end inside images, and the last one is short."""
    monkeypatch.setattr(blocks, "PROGRAMS", 1 << 20)
    assert_case(Case((3, 130, 5, 7), "norm", ("both", "dense"), slices=3).on(device), "triton", 1e-5)


@devices
@forms
def test_slices_are_separate_calls(device: str, implementation: Any) -> None:
    """The running statistics move once for each slice, in order."""
    c = randn(6, 19, 5, 7, device=device)
    joined, one_by_one = make_layer(19, 3).to(device), make_layer(19, 3).to(device)
    norm = batch_norm(joined, c, slices=3, implementation=implementation)
    for s, part in enumerate(c.chunk(3)):
        alone = batch_norm(one_by_one, part, implementation=implementation)
        for name in ("mean", "invstd", "scale"):
            assert_near(getattr(norm, name)[s], getattr(alone, name)[0], 1e-5, name)
    for (name, found), wanted in zip(joined.named_buffers(), one_by_one.buffers(), strict=True):
        assert_near(found, wanted, 1e-5, name)
    assert joined.num_batches_tracked == 3


@devices
@forms
def test_layers_without_or_with_other_running_statistics(device: str, implementation: Any) -> None:
    c = randn(*SMALL, device=device)
    untracked = torch.nn.BatchNorm2d(19, track_running_stats=False).to(device).eval()
    half = make_layer(19, 3, dtype=torch.bfloat16).to(device)
    twin = copy.deepcopy(half).float()
    norm = batch_norm(untracked, c, implementation=implementation)
    assert_near(norm.mean[0], c.double().mean((0, 2, 3)), 1e-5)
    norm = batch_norm(half, c, implementation=implementation)
    twin(c)
    assert {number.dtype for number in norm} == {torch.float32}
    assert half.running_var is not None
    assert twin.running_var is not None
    assert_near(half.running_var, twin.running_var, 2**-7)
    half.eval()
    assert {number.dtype for number in batch_norm(half, c)} == {torch.float32}


@devices
@forms
@pytest.mark.parametrize("shape", [SMALL, (3, 130, 1, 1), (2, 3, 13, 17)], ids=["C19", "1x1", "13x17"])
def test_pool_without_writing(device: str, implementation: Any, shape: tuple[int, int, int, int]) -> None:
    c, residual = randn(*shape, device=device), randn(*shape, device=device, seed=1)
    norm = batch_norm(make_layer(shape[1], 3).to(device), c, implementation=implementation)
    y, pooled = normalise(c, norm, residual, pool=True, implementation=implementation)
    nothing, alone = normalise(c, norm, residual, pool=True, write=False, implementation=implementation)
    assert nothing.numel() == 0
    assert pooled is not None
    assert alone is not None
    assert torch.equal(pooled, alone)
    assert_near(pooled, y.double().mean((2, 3)), 1e-6)
    assert normalise(c, norm, implementation=implementation)[1] is None


@devices
@forms
@pytest.mark.parametrize("groups", [1, 2])
def test_input_grad_masks_what_reduce_did_not_write(device: str, implementation: Any, groups: int) -> None:
    c = randn(*SMALL, device=device)
    dense = [randn(*SMALL, device=device, seed=5 + g) for g in range(groups)]
    norm = batch_norm(make_layer(19, 3).to(device), c, implementation=implementation)
    sums, dz = reduce(dense, [None] * groups, c, norm, implementation=implementation)
    wanted = input_grad(dz, c, norm, sums, implementation=implementation)
    again, nothing = reduce(dense, [None] * groups, c, norm, write=False, implementation=implementation)
    assert nothing.numel() == 0
    assert torch.equal(again, sums)
    stacked = torch.cat(dense)
    found = input_grad(stacked, c, norm, sums, relu=True, implementation=implementation)
    assert_near(found, wanted, 1e-6)
    assert torch.equal(stacked, torch.cat(dense)), "not to be overwritten"
    over = input_grad(stacked, c, norm, sums, relu=True, inplace=True, implementation=implementation)
    assert torch.equal(over, found)
    assert implementation == "reference" or over.data_ptr() == stacked.data_ptr()


@devices
@forms
@pytest.mark.parametrize("frozen", ["layer", "other"])
def test_one_norm_in_evaluation_mode(device: str, implementation: Any, frozen: str) -> None:
    """Running statistics are one slice, and serve all slices of the norm beside them."""
    case = Case((4, 19, 3, 3), "norm", slices=2, device=device)
    joined = make_inputs(case)
    getattr(joined, frozen).eval()
    halves = [in_parts(half, parts, implementation) for half, parts in _halves(case, joined)]
    norms = [
        batch_norm(layer, x, slices=2, implementation=implementation)
        for layer, x in ((joined.layer, joined.c), (joined.other, joined.residual))
        if x is not None
    ]
    y, _ = normalise(joined.c, norms[0], joined.residual, norms[1], implementation=implementation)
    assert_near(y, torch.cat([half["y"] for half in halves]), 1e-6)
    sums, _ = reduce(
        *(joined.dense, joined.pooled, joined.c, norms[0]),
        **{"residual": joined.residual, "residual_norm": norms[1], "implementation": implementation},
    )
    assert sums.shape == (1, 2, 3, 19)
    for s, half in enumerate(halves):
        for k, name in enumerate(("dbias0", "dweight0", "other_dweight0")):
            assert_near(sums[0, s, k], half[name], 1e-5, name)


def _halves(case: Case, joined: Any) -> list[tuple[Case, Any]]:
    """Two cases of one slice each, over copies of the layers."""
    found = []
    for s in range(2):
        part = copy.deepcopy(joined)
        part.c, part.residual = joined.c.chunk(2)[s], joined.residual.chunk(2)[s]
        part.dense = [joined.dense[0].chunk(2)[s]]
        found.append((Case((2, *case.shape[1:]), "norm", device=case.device), part))
    return found


@devices
@forms
@pytest.mark.parametrize(("rows", "tile", "far"), [(10, 10, 0), (11, 4, 0), (1500, 2, 0), (130, 32, 1000)])
def test_merge_of_uneven_tiles(device: str, implementation: Any, rows: int, tile: int, far: float) -> None:
    """The last tile is short; more tiles than a program takes at once; a mean far from 0 costs the variance nothing."""
    values = randn(2, rows, 19, dtype=torch.float64) + far
    parts = values.split(tile, 1)
    sums = torch.stack([part.sum(1) for part in parts], 1)
    squares = torch.stack([(part - part.mean(1, keepdim=True)).square().sum(1) for part in parts], 1)
    partials = Partials(sums.float().to(device), squares.float().to(device), tile, rows)
    weight, bias = randn(19, seed=1, device=device), randn(19, seed=2, device=device)
    running = [torch.zeros(19, device=device), torch.ones(19, device=device)]
    norm = merge(partials, weight, bias, *running, eps=1e-3, momentum=0.5, implementation=implementation)
    variance, mean = torch.var_mean(values, 1, correction=0)
    wanted = (variance + 1e-3).rsqrt()
    assert_near(norm.mean, mean, 1e-6, "mean")
    assert_near(norm.invstd, wanted, 1e-5, "invstd")
    assert_near(norm.scale, weight.double().cpu() * wanted, 1e-5, "scale")
    unbiased = values.var(1)
    assert_near(running[0], 0.25 * mean[0] + 0.5 * mean[1], 1e-6, "running_mean")
    assert_near(running[1], 0.25 + 0.25 * unbiased[0] + 0.5 * unbiased[1], 1e-5, "running_var")


@devices
@forms
def test_statistics_are_centred(device: str, implementation: Any) -> None:
    """Each tile's squares are distances from its own mean, exactly 0 where all its values are one."""
    c = torch.full((2, 19, 5, 7), 1000.1, device=device).contiguous(memory_format=torch.channels_last)
    sums, squares, tile, rows = statistics(c, implementation=implementation)
    assert rows == 70
    assert sums.shape == (1, -(-rows // tile), 19)
    assert float(squares.abs().max()) <= (1e-6 if implementation == "triton" else 1e-4)
