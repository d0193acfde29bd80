"""Any supervision on any backbone equals plain autograd: each loss on a graph of its own, detached at its reach."""

import copy
from itertools import pairwise

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from exact.compare import gap
from mlaan import Backbone, LocalLoss, Supervision
from mlaan.config import MemoryConfig, MethodConfig, PartitionConfig, SGDConfig
from mlaan.engine import Engine
from mlaan.learning.heads import PoolLinear

CLASSES = 3


class Residual(nn.Module):
    def __init__(self, a: int, b: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(a, b, 3, stride, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU(inplace=True))
        self.shortcut = nn.Identity() if (a, stride) == (b, 1) else nn.Conv2d(a, b, 1, stride)

    def forward(self, x):
        return F.relu(self.body(x) + self.shortcut(x), inplace=True)


def plain(a: int, b: int, stride: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(a, b, 3, stride, 1), nn.Tanh())


def normed(a: int, b: int, stride: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(a, b, 1, stride, bias=False), nn.BatchNorm2d(b), nn.GELU())


class ConvHead(nn.Module):
    """A head that isn't a pool first, so that its cotangent is dense."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv2d(channels, 4, 1), nn.Linear(4, CLASSES)

    def forward(self, h):
        return self.linear(self.conv(h).relu().amax((2, 3)))


@st.composite
def problems(draw):
    """A backbone, its partition, and any losses on it."""
    count = draw(st.integers(1, 6))
    widths = draw(st.lists(st.integers(1, 5), min_size=count + 1, max_size=count + 1))
    kinds = [draw(st.sampled_from([Residual, plain, normed])) for _ in range(count)]
    strides = [draw(st.sampled_from([1, 1, 2])) for _ in range(count)]
    torch.manual_seed(draw(st.integers(0, 1000)))
    stem = nn.Conv2d(2, widths[0], 3, padding=1) if draw(st.booleans()) else nn.Sequential()
    widths[0] = widths[0] if isinstance(stem, nn.Conv2d) else 2
    blocks = [kind(*pair, s) for kind, pair, s in zip(kinds, pairwise(widths), strides, strict=True)]
    classifier = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Linear(widths[-1], CLASSES))
    backbone = Backbone(nn.Sequential(stem, *blocks, classifier).double(), stem, blocks, classifier)
    starts = (0, *sorted(draw(st.sets(st.integers(1, count - 1))) if count > 1 else []))
    ends = [*starts[1:], count]
    losses, shared = [], {}
    for number in range(draw(st.integers(1, 8))):
        tap = draw(st.integers(0, len(starts) - 1))
        channels = widths[ends[tap]]
        fresh = draw(st.sampled_from([PoolLinear, lambda c, _: ConvHead(c)]))
        head = shared.setdefault(channels, fresh(channels, CLASSES).double())
        if draw(st.booleans()):
            head = fresh(channels, CLASSES).double()
        if tap == len(starts) - 1 and draw(st.booleans()):
            head = classifier
        reach, weight = draw(st.integers(1, 8)), draw(st.sampled_from([1.0, 0.3, 0.001, -0.5]))
        losses.append(LocalLoss(tap, head, reach, weight, kind=str(number)))
    largest = max(min(loss.reach, loss.module + 1) for loss in losses)
    schedule = draw(st.sampled_from(["lean", "full", "windowed"]))
    window = draw(st.integers(largest, len(starts))) if schedule == "windowed" else 0
    memory = MemoryConfig(schedule, window, draw(st.sampled_from(["none", "once", "each"])))
    return backbone, starts, Supervision(tuple(losses)), memory


def plain_autograd(modules: list[nn.Module], losses: tuple[LocalLoss, ...], images, labels) -> list[torch.Tensor]:
    """The loss values; gradients are left in `.grad`. Every loss runs the whole network for itself."""
    values = []
    for loss in losses:
        h = images
        for m in range(loss.module + 1):
            if m == loss.module - loss.reach + 1:
                h = h.detach()
            h = modules[m](h)
        value = F.cross_entropy(loss.head(h), labels)
        values.append(value.detach())
        first = max(0, loss.module - loss.reach + 1)
        reached = [p for part in (*modules[first : loss.module + 1], loss.head) for p in part.parameters()]
        for p, g in zip(reached, torch.autograd.grad(loss.weight * value, reached), strict=True):
            p.grad = g if p.grad is None else p.grad + g
    return values


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(problems(), st.integers(2, 5), st.tuples(st.integers(5, 9), st.integers(5, 9)))
def test_gradients_losses_and_statistics(problem, samples, size):
    backbone, starts, supervision, memory = problem
    memo = {}
    parts, losses, net = copy.deepcopy((engine_modules(backbone, starts), supervision.losses, backbone.net), memo)

    class Given(MethodConfig, name=f"given-{id(problem)}-{samples}-{size[0]}-{size[1]}"):
        def supervise(self, site):
            return supervision

    images = torch.randn(samples, 2, *size, dtype=torch.float64)
    labels = torch.randint(CLASSES, (samples,))
    try:
        engine = Engine.from_config(
            backbone, Given(), PartitionConfig(len(starts), starts), memory, SGDConfig(), (2, *size)
        )
    finally:
        del MethodConfig.choices[Given.name]
    result = engine.gradients(images, labels)

    once = copy.deepcopy(net)
    once.train()(images)
    for (name, ours), theirs in zip(backbone.net.named_buffers(), once.buffers(), strict=True):
        assert gap(ours, theirs) < 1e-9, name

    values = plain_autograd(parts, losses, images, labels)
    for ours, theirs in zip(result.losses, values, strict=True):
        assert gap(ours, theirs) < 1e-9
    scale = max((p.grad.norm().item() for part in (*parts, *(x.head for x in losses)) for p in part.parameters()
                 if p.grad is not None), default=1.0)  # fmt: skip
    for part in (backbone.net, engine.heads):
        for name, ours in part.named_parameters():
            theirs = memo[id(ours)]
            if theirs.grad is None:
                assert ours.grad is None or not ours.grad.any(), name
                continue
            assert ours.grad is not None, name
            # relative to the tensor, and to the largest one where its own gradient is rounding alone
            near = (ours.grad - theirs.grad).norm().item() < 1e-12 * scale
            assert near or gap(ours.grad, theirs.grad) < 1e-9, name


def engine_modules(backbone: Backbone, starts) -> list[nn.Module]:
    ends = [*starts[1:], len(backbone.blocks)]
    parts = [nn.Sequential(*(b.module for b in backbone.blocks[a:z])) for a, z in zip(starts, ends, strict=True)]
    return [nn.Sequential(backbone.stem, parts[0]), *parts[1:]]
