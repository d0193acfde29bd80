"""The 1x1 convolution's manners: autograd, refusals, operators of PyTorch, launches and variants."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from kernels.conv1x1_cases import Case, forms, make, make_norm
from kernels.forms import TOLERANCE, assert_near, devices, dtypes, randn
from mlaan_kernels import launching
from mlaan_kernels.choice import Implementation, interpreting
from mlaan_kernels.conv1x1 import conv1x1, conv1x1_forward, conv1x1_input_grad, conv1x1_weight_grad

interpreted = pytest.mark.skipif(not interpreting(), reason="Triton's interpreter is off where there is a GPU")
LAST = torch.channels_last


@devices
@forms
@dtypes
@pytest.mark.parametrize("stride", [1, 2], ids=["s1", "s2"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, LAST], ids=["nchw", "nhwc"])
def test_gradients(
    device: str, implementation: Implementation, dtype: torch.dtype, stride: int, layout: torch.memory_format
) -> None:
    x, weight = randn(2, 6, 5, 7, dtype=dtype, device=device), randn(8, 3, 1, 1, dtype=dtype, device=device, seed=1)
    leaves = [x.contiguous(memory_format=layout).requires_grad_(), weight.requires_grad_()]
    y = conv1x1(*leaves, stride=stride, groups=2, implementation=implementation)
    dy = randn(*y.shape, dtype=dtype, device=device, seed=2).contiguous(memory_format=layout)
    exact = [leaf.detach().double().cpu().requires_grad_() for leaf in leaves]
    wanted = F.conv2d(exact[0], exact[1], None, stride, groups=2)
    assert y.dtype == dtype
    assert_near(y.detach(), wanted.detach(), TOLERANCE[dtype], "y")
    grads = torch.autograd.grad(y, leaves, dy)
    for found, right in zip(grads, torch.autograd.grad(wanted, exact, dy.double().cpu()), strict=True):
        assert found.dtype == dtype
        assert_near(found, right, TOLERANCE[dtype])


def test_the_reference_passes_gradcheck() -> None:
    x, weight = randn(2, 4, 3, 3, dtype=torch.float64), randn(6, 2, 1, 1, dtype=torch.float64)
    leaves = (x.requires_grad_(), weight.requires_grad_())
    assert torch.autograd.gradcheck(lambda *given: conv1x1(*given, stride=2, groups=2), leaves)
    assert torch.autograd.gradgradcheck(lambda *given: conv1x1(*given, stride=2, groups=2), leaves)


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the kernels launched so far."""
    names: list[str] = []
    launch = launching.launch

    def watched(kernel: Any, *arguments: Any, **constants: Any) -> None:
        names.append(kernel.base_fn.__name__)
        launch(kernel, *arguments, **constants)

    monkeypatch.setattr(launching, "launch", watched)
    return names


@devices
@pytest.mark.parametrize(
    ("needed", "kernels"),
    [
        ((True, True), ["forward_kernel", "input_grad_kernel", "weight_grad_kernel"]),
        ((True, False), ["forward_kernel", "input_grad_kernel"]),
        ((False, True), ["forward_kernel", "weight_grad_kernel"]),
    ],
    ids=["both", "input", "weight"],
)
def test_gradients_that_nobody_needs_are_not_computed(
    device: str, needed: tuple[bool, bool], kernels: list[str], launched: list[str]
) -> None:
    x, weight = randn(1, 3, 2, 2, device=device), randn(4, 3, 1, 1, device=device)
    y = conv1x1(x.requires_grad_(needed[0]), weight.requires_grad_(needed[1]), implementation="triton")
    saved = y.grad_fn.saved_tensors if y.grad_fn else ()  # pyright: ignore[reportAttributeAccessIssue]
    assert [t is not None for t in saved] == [needed[1], needed[0]]
    y.sum().backward()
    assert launched == kernels
    assert (x.grad is not None, weight.grad is not None) == needed


@devices
@forms
def test_autocast_changes_nothing(device: str, implementation: Implementation) -> None:
    given = make(Case(inputs=5, outputs=4, size=(3, 3)), torch.float32, device)

    def run() -> list[Tensor]:
        return [
            conv1x1_forward(given.x, given.weight, given.norm, statistics=True, implementation=implementation)[0],
            conv1x1_input_grad(given.dy, given.weight, given.x.shape, None, None, implementation=implementation)[0],
            conv1x1_weight_grad(given.dy, given.x, given.norm, implementation=implementation),
        ]

    with torch.autocast(device, torch.bfloat16):
        inside = run()
    for found, wanted in zip(inside, run(), strict=True):
        assert_near(found, wanted, 0.0)


@interpreted
@pytest.mark.parametrize("stride", [1, 2], ids=["s1", "s2"])
def test_operators_keep_their_promises_to_torch(stride: int) -> None:
    """Schemas name everything that is written, and fake tensors have the shapes and strides of true ones."""
    given = make(Case(inputs=6, outputs=4, size=(5, 3), stride=stride, groups=2, slices=2, cotangents=2))
    assert given.norm is not None
    mean, invstd, scale, bias = given.norm
    conv1x1(given.x, given.weight, groups=2, implementation="triton")  # registers the operators
    ops, dy = torch.ops.mlaan, given.dy[:2].contiguous(memory_format=LAST)
    for norm in ((None, None, None), (mean, scale, bias)):
        torch.library.opcheck(ops.conv1x1_forward, (given.x, given.weight, *norm, stride, 2))
        torch.library.opcheck(ops.conv1x1_forward_statistics, (given.x, given.weight, *norm, stride, 2, 2))
        torch.library.opcheck(ops.conv1x1_weight_grad, (dy, given.x, *norm, stride, 2))
    torch.library.opcheck(ops.conv1x1_input_grad, (given.dy, given.weight, 5, 3, stride, 2))
    torch.library.opcheck(ops.conv1x1_input_grad_add, (given.dy, given.weight, randn(4, 6, 5, 3), stride, 2))
    torch.library.opcheck(
        ops.conv1x1_input_grad_norm, (given.dy, given.weight, given.x, mean, invstd, scale, bias, stride, 2)
    )


X, W, DY = randn(2, 6, 5, 3), randn(4, 3, 1, 1), randn(2, 4, 5, 3)
NORM = make_norm(Case(inputs=6, slices=2), torch.float32, "cpu")


def forward(x: Tensor = X, weight: Tensor = W, norm: Any = None, groups: int = 2, **more: Any) -> None:
    conv1x1_forward(x, weight, norm, groups=groups, **{"statistics": True, **more})


def input_grad(dy: Tensor = DY, shape: Any = X.shape, c: Any = None, norm: Any = None, **more: Any) -> None:
    conv1x1_input_grad(dy, W, shape, c, norm, **{"groups": 2, **more})


def weight_grad(dy: Tensor = DY, x: Tensor = X, norm: Any = None, **more: Any) -> None:
    conv1x1_weight_grad(dy, x, norm, **{"groups": 2, **more})


MISFITS: dict[str, Callable[[], None]] = {
    r"x has shape \(2, 6\)": lambda: forward(X[:, :, 0, 0]),
    r"x has shape \(0, 6, 5, 3\)": lambda: forward(X[:0]),
    r"x is torch.int64": lambda: forward(X.long()),
    r"x has 6 channels: give 3": lambda: forward(groups=1),
    r"weight has shape \(4, 3, 3, 3\)": lambda: forward(weight=randn(4, 3, 3, 3)),
    r"weight is torch.float64 on cpu: give torch.float32": lambda: forward(weight=W.double()),
    r"weight has shape \(4, 3, 1, 1\): give \(4, 6, 1, 1\)": lambda: input_grad(groups=1),
    r"stride is 3: give 1 or 2": lambda: forward(stride=3),
    r"stride is 0: give 1 or 2": lambda: weight_grad(stride=0),
    r"groups is 3: give a divisor of the 4": lambda: forward(groups=3),
    r"groups is 4: give a divisor of the 6 and 4": lambda: weight_grad(groups=4),
    r"slices is 3: give a divisor of the 2 images": lambda: forward(slices=3),
    r"slices is 1: give 2, as norm": lambda: forward(norm=NORM),
    r"norm.slices is 2: give a divisor of the 1 images": lambda: forward(X[:1], norm=NORM),
    r"norm.mean has shape \(6,\)": lambda: forward(norm=NORM._replace(mean=NORM.bias)),
    r"norm.bias has shape \(2, 6\): give \(6,\)": lambda: forward(norm=NORM._replace(bias=NORM.mean), slices=2),
    r"norm.scale is torch.float64": lambda: weight_grad(norm=NORM._replace(scale=NORM.scale.double())),
    r"norm.invstd has shape \(1, 6\)": lambda: input_grad(c=X, norm=NORM._replace(invstd=NORM.invstd[:1])),
    r"input_shape is \(6, 5, 3\)": lambda: input_grad(shape=(6, 5, 3)),
    r"dy has 2 images: give a multiple of the 3": lambda: input_grad(shape=(3, 6, 5, 3)),
    r"dy has shape \(2, 4, 5, 3\): give \(2, 4, 3, 2\)": lambda: input_grad(stride=2),
    r"dy has shape \(2, 4, 5, 2\): give \(2, 4, 5, 3\)": lambda: weight_grad(DY[..., :2]),
    r"dy is torch.float16": lambda: weight_grad(DY.half()),
    r"norm and norm_input belong together": lambda: input_grad(norm=NORM),
    r"norm_input has shape \(1, 6, 5, 3\): give \(2, 6, 5, 3\)": lambda: input_grad(c=X[:1], norm=NORM),
    r"norm_input is torch.float64": lambda: input_grad(c=X.double(), norm=NORM),
    r"add is given along with norm": lambda: input_grad(c=X, norm=NORM, add=X),
    r"add has shape \(1, 6, 5, 3\)": lambda: input_grad(add=X[:1]),
    r"add is torch.float64": lambda: input_grad(add=X.double()),
    r"add has strides .* give dense channels_last": lambda: input_grad(add=X.contiguous()),
    r"implementation is 'cuda'": lambda: forward(implementation="cuda"),
}


@pytest.mark.parametrize("message", MISFITS)
def test_misfits_are_named(message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MISFITS[message]()


def test_variants_are_what_is_launched() -> None:
    """Every config of the tuners, once with each name, and no argument without a value or a type."""
    pytest.importorskip("triton")
    from mlaan_kernels.conv1x1 import kernels, weight_grad
    from mlaan_kernels.conv1x1.triton import variants

    listed = variants()
    assert len({variant.name for variant in listed}) == len(listed)
    for variant in listed:
        assert {*variant.signature, *variant.constants} == set(variant.kernel.arg_names), variant.name
        assert not variant.signature.keys() & variant.constants.keys()
    for kernel, flags, table in (
        ("forward", 8, kernels.PRODUCT),
        ("input_grad", 6, kernels.PRODUCT),
        ("weight_grad", 4, weight_grad.SETTINGS),
    ):
        settings = sum(len(of_tile) for (size, _), of_tile in table.items() if size == 2)
        assert len([v for v in listed if f" {kernel} bfloat16" in v.name]) == flags * settings
