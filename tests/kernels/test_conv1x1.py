"""The 1x1 convolution's numbers: both of its forms against PyTorch's autograd in float64."""

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.conv1x1_cases import Case, check_forward, check_input_grad, check_partials, check_weight_grad, forms, make
from kernels.forms import TOLERANCE, assert_near, devices, dtypes, randn
from mlaan_kernels.choice import Implementation, interpreting
from mlaan_kernels.conv1x1 import conv1x1_forward, conv1x1_input_grad, tiles

CASES = [
    Case(),
    Case(norm=False),
    Case(images=1, inputs=3, outputs=1, size=(1, 1)),
    Case(images=1, inputs=1, outputs=2, size=(3, 5), norm=False),
    Case(images=2, inputs=130, outputs=67, size=(13, 17), stride=2),
    Case(images=4, inputs=16, outputs=64, size=(13, 17), slices=2, cotangents=2),
]
COMBINATIONS = [
    Case(images=4, inputs=9, outputs=6, size=(5, 7), stride=s, groups=g, slices=n, cotangents=c, norm=b)
    for s, g, n, c, b in product((1, 2), (1, 3), (1, 2), (1, 2), (True, False))
]
CHECKS = {"forward": check_forward, "input_grad": check_input_grad, "weight_grad": check_weight_grad}
checks = pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)


@devices
@dtypes
@checks
@pytest.mark.parametrize("case", CASES, ids=str)
def test_triton(device: str, dtype: torch.dtype, check, case: Case) -> None:
    check(case, dtype, device, "triton")


@checks
@pytest.mark.parametrize("dtype", [*TOLERANCE], ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_reference(dtype: torch.dtype, check, case: Case) -> None:
    check(case, dtype, "cpu", "reference")


@devices
@checks
@pytest.mark.parametrize("case", COMBINATIONS, ids=str)
def test_combinations(device: str, check, case: Case) -> None:
    check(case, torch.float32, device, "triton")
    check(case, torch.float64, "cpu", "reference")


@devices
@pytest.mark.parametrize("tile", tiles.TILES, ids=lambda tile: f"{tile.rows}x{tile.columns}")
def test_every_tile(device: str, tile: tiles.Tile, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large tiles are for more rows than the interpreter can do: here they are taken for few."""
    monkeypatch.setattr(tiles, "TILES", (tile,))
    monkeypatch.setattr(tiles, "RESIDENT", 1)
    forward = Case(images=2, inputs=20, outputs=tile.columns + 6, size=(11, 13), slices=2)
    check_forward(forward, torch.bfloat16, device, "triton")
    backward = Case(images=2, inputs=tile.columns + 6, outputs=20, size=(11, 13), slices=2)
    check_input_grad(backward, torch.bfloat16, device, "triton")
    check_weight_grad(backward, torch.bfloat16, device, "triton")


@devices
@forms
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["float32", "float16"])
def test_statistics_far_from_zero(device: str, implementation: Implementation, dtype: torch.dtype) -> None:
    """The mean is 100 times the standard deviation: sums of plain squares would lose every digit in float32."""
    x = randn(4, 1, 13, 17, device=device) + 100
    weight = torch.ones(3, 1, 1, 1, device=device)
    y, partials = conv1x1_forward(
        x.to(dtype), weight.to(dtype), None, statistics=True, slices=2, implementation=implementation
    )
    assert partials is not None
    check_partials(partials, y, 2)
    assert_near(partials.squares.sum(1) / partials.rows, torch.ones(2, 3), 0.2, "squares are about the tile's mean")


@devices
@forms
@dtypes
@pytest.mark.parametrize("stride", [1, 2], ids=["s1", "s2"])
@pytest.mark.parametrize("groups", [1, 3], ids=["g1", "g3"])
def test_adds_in_place(
    device: str, implementation: Implementation, dtype: torch.dtype, stride: int, groups: int
) -> None:
    case = Case(inputs=9, outputs=6, size=(5, 7), stride=stride, groups=groups, cotangents=2, norm=False)
    x = make(case, dtype, device)
    add = randn(4, 9, 5, 7, dtype=dtype, device=device, seed=8)
    before, version = add.clone(memory_format=torch.preserve_format), add._version
    alone, _ = conv1x1_input_grad(
        x.dy, x.weight, x.x.shape, None, None, stride=stride, groups=groups, implementation=implementation
    )
    found, sums = conv1x1_input_grad(
        x.dy, x.weight, x.x.shape, None, None, stride=stride, groups=groups, add=add, implementation=implementation
    )
    assert found is add
    assert sums is None
    assert add._version > version
    assert_near(add, before.double() + alone.double(), TOLERANCE[dtype], "sum")
    if stride == 2:
        skipped = torch.ones(5, 7, dtype=torch.bool)
        skipped[::2, ::2] = False
        assert torch.equal(add[:, :, skipped], before[:, :, skipped])
        assert not alone[:, :, skipped].any()


@devices
def test_the_prologue_keeps_nan(device: str) -> None:
    """A net that has blown up must not look healthy."""
    blown = make(Case(inputs=3, outputs=2, size=(2, 2), images=1), torch.float32, device)
    blown.x[0, 1, 0, 1] = float("nan")
    for implementation in ("reference", "triton"):
        y, _ = conv1x1_forward(blown.x, blown.weight, blown.norm, statistics=False, implementation=implementation)
        assert y[0, :, 0, 1].isnan().all()
        assert y.isnan().sum() == 2


@pytest.mark.skipif(not interpreting(), reason="Triton's interpreter is off where there is a GPU")
@settings(max_examples=6, deadline=None)
@given(
    images=st.integers(1, 2),
    slices=st.integers(1, 2),
    channels=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    size=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    stride=st.integers(1, 2),
    groups=st.integers(1, 3),
    norm=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)
def test_any_shapes(
    images: int,
    slices: int,
    channels: tuple[int, int],
    size: tuple[int, int],
    stride: int,
    groups: int,
    norm: bool,
    dtype: torch.dtype,
) -> None:
    inputs, outputs = (groups * count for count in channels)
    case = Case(images * slices, inputs, outputs, size, stride, groups, slices, 2, norm)
    for check in CHECKS.values():
        check(case, dtype, "cpu", "triton")
