"""Holds an engine against the two-path judge: same start, same batches, every tensor compared."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from exact.two_path import Leap, PooledLinear, TwoPath
from exact.two_path import Twin as JudgeTwin
from mlaan import MLAAN, Backbone, Engine
from mlaan.learning.leap import LeapNetwork
from mlaan.models import CifarResNet

LEARNING_RATE = 0.05


def tiny_imagenet_style() -> Backbone:
    """Four stages of two basic blocks, 8 to 32 channels, behind a stem with a max pool."""
    widths = [8, 12, 16, 32]
    stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
    blocks, stages = list[nn.Module](), list[int]()
    for stage, (a, b) in enumerate(zip([8, *widths], widths, strict=False), start=1):
        stride = 1 if stage == 1 else 2
        shortcut = nn.Sequential(nn.Conv2d(a, b, 1, stride, bias=False), nn.BatchNorm2d(b)) if stage > 1 else None
        blocks += [BasicBlock(a, b, stride, shortcut), BasicBlock(b, b)]
        stages += [stage, stage]
    classifier = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Linear(32, 10))
    net = nn.Sequential(stem, *blocks, classifier)
    return Backbone(net, stem, blocks, classifier, stages=stages, name="tiny_imagenet_style")


def resnet34_leaps() -> Backbone:
    """ResNet-34's sixteen blocks, 8 to 16 channels: its published leap table copies earlier blocks, too."""
    widths = [8, 8, 12, 16]
    stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
    blocks, stages = list[nn.Module](), list[int]()
    for stage, (a, b, count) in enumerate(zip([8, *widths], widths, [3, 4, 6, 3], strict=False), start=1):
        for index in range(count):
            stride = 2 if stage > 1 and index == 0 else 1
            shortcut = None
            if stride == 2:
                shortcut = nn.Sequential(nn.Conv2d(a, b, 1, stride, bias=False), nn.BatchNorm2d(b))
            blocks.append(BasicBlock(b if index else a, b, stride, shortcut))
            stages.append(stage)
    classifier = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Linear(16, 10))
    return Backbone(nn.Sequential(stem, *blocks, classifier), stem, blocks, classifier, stages=stages, name="resnet34")


def resnet32() -> nn.Module:
    return CifarResNet(32)


@dataclass
class Pair:
    """An engine and a judge that started as one; `twin_of` maps the engine's tensors to the judge's, by id."""

    engine: Engine
    judge: TwoPath
    twin_of: dict[int, Any]


def make_pair(
    model: Callable[[], Any], modules: int, method: MLAAN, size: int, *, device: str = "cpu", **memory: Any
) -> Pair:
    """A float64 engine for `size` x `size` images, and a judge made of copies of its very modules."""
    torch.manual_seed(modules)
    backbone = model()
    (backbone.net if isinstance(backbone, Backbone) else backbone).to(device, torch.float64)
    shape = (3, size, size)
    published = modules in (8, 15) and isinstance(backbone, CifarResNet)
    engine = Engine(
        backbone, method, modules, input_shape=shape, cuts="published" if published else "even",
        learning_rate=LEARNING_RATE, **memory,
    )  # fmt: skip
    memo: dict[int, Any] = {}
    parts = copy.deepcopy((engine.partition.modules(engine.backbone), engine.supervision), memo)
    return Pair(engine, judge_of(engine, method, *parts), memo)


def judge_of(engine: Engine, method: MLAAN, modules: list[Any], supervision: Any) -> TwoPath:
    count = len(modules)
    imagenet = method.preset == "authors" and engine.backbone.blocks[-1].stage == 4
    stem, modules[0] = modules[0][0], modules[0][1:]  # both paths start from its one output
    independent: list[nn.Module | None] = [None] * count
    leaps: list[nn.Module | None] = [None] * count
    for loss in supervision.losses:
        if loss.module == count - 1:
            classifier = loss.head
        elif loss.kind == "independent":
            independent[loss.module] = PooledLinear(loss.head.linear)
        else:
            leaps[loss.module] = _leap(loss.head)
    moves = {id(twin.block): twin.keep for twin in supervision.twins}
    twins = [
        JudgeTwin(twin.block, twin.source, 1 if moves[id(twin.block)] == method.ema else 2)
        for twin in supervision.twins
    ]
    return TwoPath(
        modules, classifier, independent=independent, leaps=leaps, reach=method.reach, stem=stem, twins=twins,
        last="both" if imagenet else "cascaded", statistics="every" if method.preset == "authors" else "once",
        ema=method.ema, learning_rate=LEARNING_RATE,
    )  # fmt: skip


def _leap(head: nn.Module) -> nn.Module:
    if not isinstance(head, LeapNetwork):
        return PooledLinear(head.linear)
    twins = [dict(head.twins.items()).get(str(t)) for t in range(len(head.blocks))]
    for twin in filter(None, twins):
        twin.requires_grad_(False)
    return Leap(list(head.blocks), twins, PooledLinear(head.head.linear))


def batches(count: int, size: int, samples: int = 6) -> list[tuple[Tensor, Tensor]]:
    random = torch.Generator().manual_seed(7)
    return [
        (
            torch.randn(samples, 3, size, size, generator=random, dtype=torch.float64),
            torch.randint(10, (samples,), generator=random),
        )
        for _ in range(count)
    ]


def gap(ours: Tensor | None, theirs: Tensor | None) -> float:
    """Relative distance of two tensors; infinite when either is missing or not a number."""
    if ours is None or theirs is None:
        return float("inf")
    scale = theirs.double().norm().item() or 1.0
    distance = (ours.double() - theirs.double()).norm().item() / scale
    return distance if distance == distance else float("inf")


def gradient_gap(pair: Pair, size: int) -> float:
    """Largest gap over every loss and every parameter's gradient of one step."""
    [(images, labels)] = batches(1, size)
    result = pair.engine.gradients(images, labels)
    device = pair.engine.device
    losses = pair.judge.step(images.to(device), labels.to(device), update=False)
    gaps = [gap(value, losses[name]) for name, value in zip(pair.engine.loss_names, result.losses, strict=True)]
    for part in (pair.engine.backbone.net, pair.engine.heads):
        for parameter in part.parameters():
            if parameter.requires_grad:
                gaps.append(gap(parameter.grad, pair.twin_of[id(parameter)].grad))
    return max(gaps)


def state_gap(pair: Pair, size: int, steps: int) -> float:
    """Largest gap over every weight, running statistic, counter and EMA twin after some optimizer steps."""
    for images, labels in batches(steps, size):
        pair.engine.step(images, labels)
        pair.judge.step(images.to(pair.engine.device), labels.to(pair.engine.device))
    tensors = [
        t for part in (pair.engine.backbone.net, pair.engine.heads) for t in part.state_dict(keep_vars=True).values()
    ]
    return max(gap(t.detach(), pair.twin_of[id(t)].detach()) for t in tensors)
