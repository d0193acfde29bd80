"""What the operator's parts refuse, and what they tell torch.library and the table of variants."""

from itertools import product
from typing import Any

import pytest
import torch
from benchmarks.launched import differences
from benchmarks.launched import forms as forms_of
from torch import Tensor

from kernels.batchnorm_cases import few_programs, forms, make_layer
from kernels.forms import devices, dtypes, randn
from mlaan_kernels import launching
from mlaan_kernels.batchnorm_act import batch_norm, blocks, input_grad, normalise, reduce, statistics
from mlaan_kernels.batchnorm_act.triton import variants

__all__ = ["few_programs"]

pytestmark = pytest.mark.usefixtures("few_programs")


@forms
def test_refused(implementation: Any) -> None:
    c = randn(4, 19, 3, 3)
    form = {"implementation": implementation}
    norm = batch_norm(make_layer(19, 3), c, **form)
    halves = batch_norm(make_layer(19, 3), c, slices=2, **form)
    quarters = batch_norm(make_layer(19, 3), c, slices=4, **form)
    pooled = randn(4, 19)
    with pytest.raises(ValueError, match=r"slices = 3 do not divide a batch of 4"):
        statistics(c, slices=3, **form)
    with pytest.raises(ValueError, match=r"BatchNorm over one value.*in 4 slices has 1"):
        statistics(randn(4, 3, 1, 1), slices=4, **form)
    with pytest.raises(ValueError, match=r"norm of \(1, 19\) .* does not fit c"):
        normalise(randn(4, 3, 3, 3), norm, **form)
    with pytest.raises(ValueError, match=r"norm of \(2, 19\) .* does not fit c"):
        normalise(c[:3], halves, **form)
    with pytest.raises(ValueError, match="leave nothing to compute"):
        normalise(c, norm, write=False, **form)
    with pytest.raises(ValueError, match="residual_norm without a residual"):
        normalise(c, norm, None, norm, **form)
    with pytest.raises(ValueError, match="norm has 2 slices and residual_norm 4"):
        normalise(c, halves, c, quarters, **form)
    with pytest.raises(ValueError, match="3 dense and 3 pooled cotangents"):
        reduce([c] * 3, [None] * 3, c, norm, **form)
    with pytest.raises(ValueError, match="0 dense"):
        reduce([], [], c, norm, **form)
    with pytest.raises(ValueError, match="cotangent 1 has neither"):
        reduce([c, None], [None, None], c, norm, **form)
    with pytest.raises(ValueError, match=r"pooled\[0\] of \(19, 4\) does not fit"):
        reduce([None], [pooled.T], c, norm, **form)
    with pytest.raises(ValueError, match=r"dense\[0\] of .* does not fit c"):
        reduce([c.bfloat16()], [None], c, norm, **form)
    with pytest.raises(ValueError, match=r"residual of .* does not fit c"):
        reduce([c], [None], c, norm, residual=c[:2], **form)
    for wrong in ({"residual": c}, {"pooled": [pooled]}, {"dense": [None], "pooled": [pooled]}):
        with pytest.raises(ValueError, match="write = False"):
            reduce(**{"dense": [c], "pooled": [None], "c": c, "norm": norm, **wrong}, write=False, **form)
    with pytest.raises(ValueError, match=r"dz of .* does not fit c"):
        input_grad(torch.cat([c] * 3), c, norm, None, **form)
    with pytest.raises(ValueError, match=r"sums of \(1, 1, 3, 19\) do not fit"):
        input_grad(c, c, norm, torch.zeros(1, 1, 3, 19), **form)


@devices
def test_operators(device: str) -> None:
    """What torch.compile and autograd are told of the launchers is what they do."""
    from mlaan_kernels.batchnorm_act import autograd

    c, other = randn(4, 20, 3, 3, device=device), randn(4, 20, 3, 3, device=device, seed=1)
    half = randn(4, 10, 3, 3, device=device, seed=2)
    layer = make_layer(20, 3).to(device)
    running = (layer.running_mean, layer.running_var)
    sums, squares = autograd.statistics(c, 2)
    tile = blocks.tile_rows(18, 2, 20)
    mean, invstd, scale = autograd.make_norm(sums, squares, layer.weight.detach(), *running, tile, 18, 1e-5, 0.1)
    bias = layer.bias.detach()
    numbers: tuple[Tensor, ...] = (mean, invstd, scale, bias)
    pooled = randn(4, 20, device=device)
    calls: list[tuple[Any, tuple[Any, ...]]] = [
        (autograd.statistics, (c, 2)),
        (autograd.make_norm, (sums, squares, layer.weight.detach(), *running, tile, 18, 1e-5, 0.1)),
        (autograd.make_norm, (sums, squares, layer.weight.detach(), None, None, tile, 18, 1e-5, 0.1)),
        (autograd.forward, (c, mean, scale, bias, *[None] * 4, True, True, False, 1, 20)),
        (autograd.forward, (c, mean, scale, bias, other, mean, scale, bias, True, True, True, 1, 20)),
        (autograd.forward, (c, mean, scale, bias, *[None] * 4, False, False, True, 1, 20)),
        (autograd.forward, (c, mean, scale, bias, half, *[None] * 3, True, True, True, 2, 5)),
        (autograd.reduce, ([c], [None], c, *numbers, *[None] * 5, True, False, 1, 20)),
        (autograd.reduce, ([c, None], [None, pooled], c, *numbers, other, *numbers, True, True, 1, 20)),
        (autograd.reduce, ([half], [None], c, *numbers, half, *[None] * 4, True, True, 2, 5)),
        (autograd.input_grad, (torch.empty_like(c), other, c, *numbers, torch.ones(1, 2, 2, 20, device=device), True)),
    ]
    tests = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    for operator, arguments in calls:
        torch.library.opcheck(operator, arguments, test_utils=tests)


@devices
@dtypes
def test_every_launch_is_listed(device: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the parts are asked for; nothing is launched here."""
    launched: list[Any] = []

    def note(kernel: Any, grid: Any, *arguments: Any, **constants: Any) -> None:
        launched.extend(forms_of(kernel, arguments, constants))

    monkeypatch.setattr(launching, "launch", note)
    c, half, pooled = randn(4, 64, 3, 3, dtype=dtype, device=device), randn(4, 32, 3, 3, dtype=dtype), randn(4, 64)
    half, pooled = half.to(device), pooled.to(device)
    form: dict[str, Any] = {"implementation": "triton"}
    norm = batch_norm(make_layer(64, 3).to(device), c, **form)
    for members, kind, relu in product((1, 2), ("none", "plain", "norm"), (False, True)):
        like = half if members == 2 else c
        layout: dict[str, Any] = {"members": members, "width": 32, "relu": relu, **form}
        residual, other = {"none": (None, None), "plain": (like, None), "norm": (c, norm)}[kind]
        for write, pool in ((True, False), (False, True), (True, True)):
            if relu or members == 1:
                normalise(c, norm, residual, other, write=write, pool=pool, **layout)
        for groups, dense, spread in product((1, 2), (False, True), (False, True)):
            parts = [like if dense else None] * groups, [pooled[:, : like.shape[1]] if spread else None] * groups
            for write in (False, True):
                plain = dense and not spread and kind == "none" and members == 1
                if (write or plain) and (dense or spread):
                    reduce(*parts, c, norm, residual=residual, residual_norm=other, write=write, **layout)
    for groups, relu, sums in product((1, 2), (False, True), (True, False)):
        numbers = torch.zeros(groups, 1, 2, 64, device=device) if sums else None
        input_grad(torch.cat([c] * groups), c, norm, numbers, relu=relu, **form)
    listed = variants()
    for kernel, given in launched:
        found = [differences(variant, given) for variant in listed if variant.kernel is kernel]
        assert min(found, key=len) == [], kernel.__name__


def test_variants_name_every_argument_once() -> None:
    found = variants()
    assert len({variant.name for variant in found}) == len(found)
    for variant in found:
        assert sorted([*variant.signature, *variant.constants]) == sorted(variant.kernel.arg_names), variant.name
