"""Fused blocks, light heads and leap networks in whole steps: the judge's gradients and state in float64 by the
reference operators, and in float32 by Triton's, at that precision's tolerance."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.models.resnet import Bottleneck

from exact.compare import gradient_gap, make_pair, resnet32, state_gap, tiny_imagenet_style
from kernels.forms import devices
from mlaan import MLAAN, Backbone, Engine
from mlaan.engine import StepResult
from mlaan.execute import FusedModule
from mlaan_kernels import launching
from mlaan_kernels.blocks import Chain, Cotangent, Settings
from mlaan_kernels.choice import interpreting

EXACT = 1e-9
FLOAT32 = 1e-4  # over dozens of layers; each operator by itself is held to 1e-5
CLEAR = 3e-5  # from 0: more than float32 loses on the way


def tiny_bottlenecks() -> Backbone:
    """Three stages of two bottlenecks, 16 to 48 channels, behind a stem with a max pool."""
    stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
    blocks, stages, given = list[nn.Module](), list[int](), 8
    for stage, width in enumerate((4, 8, 12), start=1):
        for index in range(2):
            stride = 2 if stage > 1 and index == 0 else 1
            shortcut = None
            if index == 0:
                shortcut = nn.Sequential(nn.Conv2d(given, 4 * width, 1, stride, bias=False), nn.BatchNorm2d(4 * width))
            blocks.append(Bottleneck(given, width, stride, shortcut))
            stages.append(stage)
            given = 4 * width
    classifier = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Linear(given, 10))
    net = nn.Sequential(stem, *blocks, classifier)
    return Backbone(net, stem, blocks, classifier, stages=stages, name="tiny_bottlenecks")


CASES = [
    pytest.param(resnet32, 8, MLAAN(reach=2), 16, id="resnet32-K8-r2-paper"),
    pytest.param(resnet32, 15, MLAAN(preset="authors", reach=2), 16, id="resnet32-K15-r2-authors"),
    pytest.param(tiny_imagenet_style, 8, MLAAN(reach=3), 32, id="imagenet-K8-r3-paper"),
    pytest.param(tiny_imagenet_style, 5, MLAAN(preset="authors", reach=3), 32, id="imagenet-K5-r3-authors"),
    pytest.param(tiny_imagenet_style, 8, MLAAN(twins="all", ema=0.9), 32, id="imagenet-K8-r2-all-twins"),
    pytest.param(tiny_bottlenecks, 6, MLAAN(reach=3), 32, id="bottlenecks-K6-r3-paper"),
    pytest.param(tiny_bottlenecks, 3, MLAAN(preset="light", reach=2), 32, id="bottlenecks-K3-r2-light"),
]
SCHEDULES: list[dict[str, Any]] = [{}, {"schedule": "windowed", "window": 3}, {"schedule": "full"}]


@pytest.mark.parametrize("memory", SCHEDULES, ids=lambda m: m.get("schedule", "lean"))
@pytest.mark.parametrize(("model", "modules", "method", "size"), CASES)
def test_the_judges_gradients_and_state(model, modules, method, size, memory):
    fused = {"recompute": "fused", **memory}
    pair = make_pair(model, modules, method, size, **fused)
    assert all(isinstance(part, Chain) for work in pair.engine.executor.work for part in work.parts)
    assert gradient_gap(pair, size) < EXACT
    assert state_gap(make_pair(model, modules, method, size, **fused), size, 3) < EXACT


@pytest.mark.parametrize("size", [16, 9])
@pytest.mark.parametrize("preset", ["paper", "fast", "live"])
def test_leap_networks_run_fused_and_together(preset, size):
    """Twins beside their blocks, leap networks alike as one, a shared one with statistics of each module's own."""
    torch.manual_seed(0)
    method = MLAAN(leap="live", pooled=True) if preset == "live" else MLAAN(preset=preset)
    shape = (3, size, size)
    engine = Engine(resnet32().double(), method, 8, input_shape=shape, schedule="full", recompute="fused")
    usual = copy.deepcopy(engine.state_dict())
    images, labels = torch.randn(4, *shape, dtype=torch.float64), torch.randint(10, (4,))
    fused = engine.gradients(images, labels)
    found = {name: weight.grad for name, weight in engine.heads.named_parameters()}
    leaps = list(engine.executor.heads.leaps.values())
    assert None not in leaps
    assert leaps
    if preset == "paper":
        assert max(len(leap.heads) for leap in leaps) == 3
        assert {leap.chains[0].members for leap in leaps} == {2}
    plain = Engine(resnet32().double(), method, 8, input_shape=shape, schedule="lean")
    plain.load_state_dict(usual)
    assert torch.equal(plain.gradients(images, labels).correct, fused.correct)
    weights = zip(engine.backbone.net.parameters(), plain.backbone.net.parameters(), strict=True)
    for ours, theirs in weights:
        assert float((ours.grad - theirs.grad).norm() / theirs.grad.norm().clamp(min=1e-30)) < EXACT
    for name, weight in plain.heads.named_parameters():
        assert (weight.grad is None) == (found[name] is None)
        if weight.grad is not None:
            assert float((weight.grad - found[name]).norm() / weight.grad.norm().clamp(min=1e-30)) < EXACT, name


@devices
@pytest.mark.parametrize(
    ("model", "modules", "method", "size", "memory", "soft"),
    [
        pytest.param(resnet32, 4, MLAAN(preset="light"), 8, {"schedule": "full"}, False, id="resnet32-light-full"),
        pytest.param(tiny_imagenet_style, 4, MLAAN(reach=3), 32, {}, False, id="imagenet-paper-lean"),
        pytest.param(
            tiny_bottlenecks, 3, MLAAN(reach=2), 16, {"schedule": "full"}, True, id="bottlenecks-paper-full-soft"
        ),
        pytest.param(
            tiny_bottlenecks, 3, MLAAN(preset="fast"), 16, {"recompute": "fused"}, False, id="bottlenecks-fast-fused"
        ),
        pytest.param(
            tiny_bottlenecks,
            6,
            MLAAN(preset="light"),
            16,
            {"recompute": "once"},
            True,
            id="bottlenecks-light-once-soft",
        ),
    ],
)
def test_triton_steps_in_float32(model, modules, method, size, memory, soft, device):
    """Losses, all gradients and running statistics beside the plain engine's in float64; soft: of probabilities."""
    settings = {"input_shape": (3, size, size), **memory}
    torch.manual_seed(0)
    exact = Engine(_cast(model(), torch.float64), method, modules, **settings)
    plain = Engine(_cast(model(), torch.float32), method, modules, kernels="reference", **settings)
    fused = Engine(_cast(model(), torch.float32, device), method, modules, kernels="triton", **settings)
    assert fused.kernels == "triton"
    state = exact.state_dict()
    single = {part: {key: _single(value) for key, value in state[part].items()} for part in ("backbone", "heads")}
    for engine in (plain, fused):
        engine.load_state_dict(state | single)
    wanted, images, labels = _clear_of_zero(exact, size, soft=soft)
    found = fused.gradients(images.float(), _single(labels))
    plain.gradients(images.float(), _single(labels))
    assert torch.allclose(found.losses.double().cpu(), wanted.losses, rtol=FLOAT32)
    assert torch.equal(found.correct.cpu(), wanted.correct)
    for part in ("backbone", "heads"):
        nets = [engine.backbone.net if part == "backbone" else engine.heads for engine in (exact, plain, fused)]
        theirs, usual, ours = (dict(net.named_parameters()) for net in nets)
        for name, weight in theirs.items():
            assert (weight.grad is None) == (ours[name].grad is None), name
            if weight.grad is not None:
                # what plain PyTorch loses in this precision: some of these small problems are ill-conditioned
                allowed = max(FLOAT32, 5 * _gap(usual[name].grad, weight.grad))
                assert _gap(ours[name].grad, weight.grad) < allowed, f"{part}.{name}"
        theirs, usual, ours = (dict(net.named_buffers()) for net in nets)
        for name, buffer in theirs.items():
            assert _gap(ours[name], buffer) < FLOAT32, f"{part}.{name}"


def test_a_block_that_comes_twice_gets_the_sum_of_its_gradients():
    def net() -> Any:
        torch.manual_seed(0)
        model = resnet32().double()
        model.layer1[2] = model.layer1[1]
        model.layer2[2].conv1.weight = model.layer2[1].conv1.weight
        return model

    images, labels = torch.randn(4, 3, 8, 8, dtype=torch.float64), torch.randint(10, (4,))
    engines = [
        Engine(net(), MLAAN(preset="light"), 3, input_shape=(3, 8, 8), recompute=kind) for kind in ("none", "fused")
    ]
    for engine in engines:
        engine.gradients(images, labels)
    for ours, theirs in zip(*(engine.backbone.net.parameters() for engine in reversed(engines)), strict=True):
        assert float((ours.grad - theirs.grad).norm() / theirs.grad.norm().clamp(min=1e-30)) < EXACT


class _ConvolutionGradients(TorchDispatchMode):
    """Which of input and weight each backward of PyTorch's own convolution was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[bool, bool]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.convolution_backward.default:
            self.asked.append(tuple(args[-1][:2]))
        return func(*args, **(kwargs or {}))


@pytest.mark.skipif(not interpreting(), reason="watches interpreted launches")
@pytest.mark.parametrize("form", ["basic", "bottleneck"])
def test_propagate_launches_no_weight_gradient_kernel(form, monkeypatch):
    """Kernels of a Propagate, and of a Backward, by name; PyTorch's own convolutions by what they are asked for."""
    net = tiny_bottlenecks() if form == "bottleneck" else tiny_imagenet_style()
    module = nn.Sequential(*(block.module for block in net.blocks[:2]))
    work = FusedModule(module, Settings(None, "triton"))
    launched: list[str] = []
    usual = launching.launch

    def watch(kernel: Any, *arguments: Any, **constants: Any) -> None:
        launched.append(getattr(kernel, "fn", kernel).__name__)
        usual(kernel, *arguments, **constants)

    monkeypatch.setattr(launching, "launch", watch)
    y, saved, _ = work.forward(torch.randn(2, 8, 6, 6), True)
    cotangent = [Cotangent(dense=torch.randn_like(y))]
    launched.clear()
    with _ConvolutionGradients() as propagate:
        inputs, grads = work.backward(saved, cotangent, [True], False, True)
    assert inputs[0] is not None
    assert not grads
    assert launched
    assert not [name for name in launched if "weight" in name]
    assert propagate.asked
    assert not any(weight for _, weight in propagate.asked)
    propagated = len(launched)
    launched.clear()
    with _ConvolutionGradients() as both:
        _, grads = work.backward(saved, cotangent, [True], True, False)
    assert None not in grads
    assert any(weight for _, weight in both.asked)
    if form == "bottleneck":
        assert len([name for name in launched if "weight" in name]) >= 4
    assert len(launched) > propagated


def _clear_of_zero(exact: Engine, size: int, *, soft: bool) -> tuple[StepResult, torch.Tensor, torch.Tensor]:
    """The exact engine's gradients for images that bring no ReLU's input so close to 0 that float32 may see it on the
    other side, which would be another gradient altogether."""
    start = copy.deepcopy(exact.state_dict())
    nearest = [math.inf]

    def look(_: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        nearest[0] = min(nearest[0], float(given[0].detach().abs().min()))

    nets = nn.ModuleList([exact.backbone.net, exact.heads])
    hooks = [part.register_forward_pre_hook(look) for part in nets.modules() if isinstance(part, nn.ReLU)]
    for seed in range(100):
        torch.manual_seed(seed)
        images, labels = torch.randn(8, 3, size, size, dtype=torch.float64), torch.randint(10, (8,))
        if soft:
            labels = torch.randn(8, 10, dtype=torch.float64).softmax(1)
        exact.load_state_dict(start)
        nets.zero_grad(set_to_none=True)
        nearest[0] = math.inf
        result = exact.gradients(images, labels)
        if nearest[0] > CLEAR:
            for hook in hooks:
                hook.remove()
            return result, images, labels
    raise AssertionError("no such images found")


def _cast(backbone: Any, dtype: torch.dtype, device: str = "cpu") -> Any:
    (backbone.net if isinstance(backbone, Backbone) else backbone).to(device, dtype)
    return backbone


def _single(value: torch.Tensor) -> torch.Tensor:
    return value.float() if value.is_floating_point() else value


def _gap(found: torch.Tensor | None, wanted: torch.Tensor) -> float:
    """Relative, but for gradients that are zero but for rounding."""
    assert found is not None
    scale = wanted.double().norm().clamp(min=1e-3 * wanted.numel() ** 0.5)
    return float((found.double().cpu() - wanted.double()).norm() / scale)
