"""Heads that share a network: one call on the joined batch is the same function as a call for each module."""

from collections import Counter
from contextlib import nullcontext
from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from exact.compare import gap
from mlaan import MLAAN, Backbone, Engine, LocalLoss, Supervision
from mlaan.config import MemoryConfig, PartitionConfig, SGDConfig
from mlaan.execute import heads
from mlaan.learning.leap import LeapNetwork, live_block
from mlaan.models import CifarResNet, as_backbone
from mlaan.plan import Kind
from mlaan.plan.schedule import LARGE_TOGETHER

EXACT, CLEARLY = 1e-12, 1e-3
LEAN, FULL = MemoryConfig("lean"), MemoryConfig("full")
JOINING = [
    FULL,
    MemoryConfig("full", 0, "once"),
    MemoryConfig("full", 0, "each"),
    MemoryConfig("windowed", 5),
    MemoryConfig("windowed", 4, "each"),
]


class PerceptronHead(nn.Module):
    """Like DGL's: BatchNorm over maps and over vectors. It takes maps of any size."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(6, 8, 1, bias=False), nn.BatchNorm2d(8)
        self.hidden, self.norm1d = nn.Linear(32, 12, bias=False), nn.BatchNorm1d(12)
        self.last = nn.Linear(12, 10)

    def forward(self, h: Tensor) -> Tensor:
        h = self.norm(self.convolution(h)).relu()
        return self.last(self.norm1d(self.hidden(F.adaptive_avg_pool2d(h, 2).flatten(1))).relu())


class Shared:
    """One head, made by `head(backbone)`, for all modules but the last; weights and reaches differ."""

    def __init__(self, head: Any) -> None:
        self.head = head

    def supervise(self, site: Any) -> Supervision:
        head, last = self.head(site.backbone), site.modules - 1
        losses = [LocalLoss(i, head, 1 + i % 2, 1 / (i + 1), "local") for i in range(last)]
        return Supervision((*losses, LocalLoss(last, site.backbone.classifier, 2, kind="classifier")))


def plain_net() -> Backbone:
    """Six channels everywhere; the first two blocks put out 8 x 8 pixels, the others 4 x 4."""
    stem = nn.Conv2d(3, 6, 3, padding=1)
    blocks = [
        nn.Sequential(nn.Conv2d(6, 6, 3, stride, 1, bias=False), nn.BatchNorm2d(6), nn.ReLU())
        for stride in (1, 1, 2, 1, 1)
    ]
    classifier = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Linear(6, 10))
    return Backbone(nn.Sequential(stem, *blocks, classifier), stem, blocks, classifier)


def live_leap(backbone: Backbone) -> LeapNetwork:
    return LeapNetwork([live_block(backbone.blocks[-1].module)], [None], PerceptronHead(), live=True)


PERCEPTRON, LIVE = Shared(lambda backbone: PerceptronHead()), Shared(live_leap)
STAGE = {
    "stage": MLAAN(leap="stage"),
    "all-twins": MLAAN(leap="stage", reach=3, twins="all"),
    "fast": MLAAN(preset="fast"),
    "dgl": MLAAN(leap="stage", base="dgl"),
    "predsim": MLAAN(leap="stage", base="predsim"),
}


def make(method: Any, memory: MemoryConfig) -> Engine:
    """In float64 for images of 8 x 8, every block a module: ResNet-20 for a method, else the plain net."""
    torch.manual_seed(0)
    backbone = as_backbone(CifarResNet(20)) if isinstance(method, MLAAN) else plain_net()
    backbone.net.double()
    partition = PartitionConfig(len(backbone.blocks))
    engine = Engine.from_config(backbone, method, partition, memory, SGDConfig(), (3, 8, 8))
    with torch.no_grad():
        for p in engine.heads.parameters():
            p += 0.1 * torch.randn_like(p)
    return engine


def run(engine: Engine) -> tuple[Tensor, dict[str, Tensor | None], Counter[nn.Module]]:
    """Losses, gradients by name, and how often each shared head was called."""
    calls = Counter[nn.Module]()
    for head in engine.heads:
        head.register_forward_hook(lambda head, inputs, output: calls.update([head]))
    random = torch.Generator().manual_seed(3)
    images = torch.randn(6, 3, 8, 8, generator=random, dtype=torch.float64)
    losses = engine.gradients(images, torch.randint(10, (6,), generator=random)).losses
    parts = {"backbone": engine.backbone.net, "heads": engine.heads}
    return losses, {f"{k}.{n}": p.grad for k, part in parts.items() for n, p in part.named_parameters()}, calls


@lru_cache
def one_by_one(method: Any) -> tuple[Tensor, dict[str, Tensor | None]]:
    """Losses and gradients of the lean schedule, which joins nothing."""
    return run(make(method, LEAN))[:2]


def distance(method: Any, memory: MemoryConfig) -> float:
    """The largest relative difference that joining makes to a loss or a gradient."""
    (wanted, expected), (losses, grads, _) = one_by_one(method), run(make(method, memory))
    gaps = [gap(a, b) for a, b in zip(losses, wanted, strict=True)]
    assert [n for n, g in grads.items() if g is None] == [n for n, g in expected.items() if g is None]
    return max(gaps + [gap(g, expected[n]) for n, g in grads.items() if g is not None])


def title(memory: MemoryConfig) -> str:
    return f"{memory.schedule}{memory.window or ''}-{memory.recompute}"


@pytest.mark.parametrize(("name", "memory"), [
    *(("stage", memory) for memory in JOINING),
    *((name, memory) for name in list(STAGE)[1:] for memory in JOINING[::4]),
], ids=lambda value: value if isinstance(value, str) else title(value))  # fmt: skip
def test_a_stage_shared_leap(name, memory):
    assert distance(STAGE[name], memory) < EXACT


@pytest.mark.parametrize("memory", JOINING, ids=title)
@pytest.mark.parametrize("method", [PERCEPTRON, LIVE], ids=["perceptron", "live"])
def test_outputs_of_two_shapes(method, memory):
    assert distance(method, memory) < EXACT


def joins(engine: Engine) -> list[list[int]]:
    """The modules of every Head, light ones aside, that brings others along."""
    steps = [step for step in engine.plan.steps if step.task.kind is Kind.HEAD and step.joined]
    light = engine.plan.graph.light
    return [sorted(task.module for task in step.tasks) for step in steps if not light[step.task.index]]


def test_the_plan_joins_as_far_as_the_window_goes():
    assert joins(make(STAGE["stage"], LEAN)) == []
    assert sorted(joins(make(STAGE["stage"], FULL))) == [[0, 1, 2], [3, 4, 5], [6, 7]]
    windowed = joins(make(STAGE["stage"], MemoryConfig("windowed", 5)))
    assert windowed
    assert all(len(modules) <= 5 for modules in windowed)
    assert joins(make(MLAAN(), LEAN)) == []
    alike = joins(make(MLAAN(), FULL))  # leap networks of their own, made of copies of the same blocks
    assert alike
    assert max(map(len, alike)) <= LARGE_TOGETHER


@pytest.mark.parametrize("memory", [LEAN, FULL], ids=["lean", "full"])
def test_calls_of_each_shared_head(memory):
    engine = make(STAGE["stage"], memory)
    shared = Counter(loss.head for loss in engine.supervision.losses if loss.kind == "cascaded")
    calls = run(engine)[2]
    assert sorted(shared.values()) == [2, 3, 3]
    assert [calls[head] for head in shared] == [n if memory is LEAN else 1 for n in shared.values()]
    engine = make(PERCEPTRON, memory)
    assert [*run(engine)[2].values()][:1] == [4 if memory is LEAN else 2]  # two shapes


@pytest.mark.parametrize(
    "method", [STAGE["stage"], STAGE["dgl"], PERCEPTRON, LIVE], ids=["stage", "dgl", "perceptron", "live"]
)
def test_statistics_of_the_whole_joined_batch_are_seen(monkeypatch, method):
    monkeypatch.setattr(heads, "statistics_of_slices", lambda head, count: nullcontext())
    assert distance(method, FULL) > CLEARLY
