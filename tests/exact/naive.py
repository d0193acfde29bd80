"""A definition of MLAAN's step still more naive than the judge's, and the tiny nets that both are tried on.

Each loss builds its own graph from the image; statistics, twins and weights move by formulas written out. Six modules
of one residual block each, two stages, float64.
"""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from exact.two_path import Leap, PooledLinear, Twin, TwoPath

WIDTHS, STRIDES, CLASSES = (3, 3, 4, 4, 4, 4), (1, 1, 2, 1, 1, 1), 3
DEPTH = len(WIDTHS)
RATE, MOMENTUM, DECAY, MU, BN_MOMENTUM = 0.05, 0.9, 1e-2, 0.995, 0.1
EXACT, SENSITIVE = 1e-12, 1e-6


@dataclass(frozen=True)
class Case:
    """One way to train the tiny net: twins' `moves`, updates of each module's statistics, counted by hand."""

    preset: Literal["paper", "authors"]
    reach: int
    last: Literal["cascaded", "both"] = "cascaded"
    counts: tuple[int, ...] = (1,) * DEPTH
    stem_count: int = 1
    moves: tuple[int, ...] = (1,) * (DEPTH - 1)
    stem_apart: bool = True
    twins_everywhere: bool = False
    shared_leap: bool = False

    @property
    def first(self) -> int:
        """The first module with losses of its own."""
        return 0 if self.preset == "paper" else self.reach - 1


CASES = {
    "paper-r2": Case("paper", 2),
    "paper-r3-stem-in-module-0": Case("paper", 3, stem_apart=False),
    "paper-r2-twins-on-every-layer": Case("paper", 2, twins_everywhere=True),
    "paper-r2-shared-leap": Case("paper", 2, shared_leap=True),
    "paper-r1": Case("paper", 1),
    "paper-r9-end-to-end": Case("paper", 9),
    "cifar-r2": Case("authors", 2, counts=(2, 3, 3, 3, 3, 2), moves=(0, 0, 0, 0, 1)),
    "cifar-r2-stem-in-module-0": Case(
        "authors", 2, counts=(2, 3, 3, 3, 3, 2), stem_count=2, moves=(0, 0, 0, 0, 1), stem_apart=False
    ),
    "imagenet-r3": Case("authors", 3, "both", counts=(2, 3, 4, 4, 3, 2), moves=(0, 0, 1, 1, 2)),
}


class Block(nn.Module):
    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width_in, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        plain = stride == 1 and width_in == width
        convolution = nn.Conv2d(width_in, width, 1, stride, bias=False)
        self.shortcut = nn.Identity() if plain else nn.Sequential(convolution, nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        inner = F.relu(self.bn1(self.conv1(x)), inplace=True)
        return F.relu(self.bn2(self.conv2(inner)) + self.shortcut(x), inplace=True)


@dataclass
class Net:
    """What a test hands to the judge, copied as one so that twins stay the blocks inside their leaps."""

    case: Case
    stem: nn.Module
    modules: list[Block]
    classifier: nn.Module
    independent: list[nn.Module | None] = field(default_factory=list)
    leaps: list[Leap | None] = field(default_factory=list)
    twins: list[Twin] = field(default_factory=list)

    def judge(self, kind: type[TwoPath] = TwoPath, **settings: Any) -> TwoPath:
        case = self.case
        stem, modules = (self.stem, self.modules) if case.stem_apart else (None, self.joined())
        chosen = {
            "reach": case.reach,
            "last": case.last,
            "statistics": "every" if case.preset == "authors" else "once",
            "learning_rate": RATE,
            "weight_decay": DECAY,
            "twins": self.twins,
        } | settings
        return kind(modules, self.classifier, independent=self.independent, leaps=self.leaps, stem=stem, **chosen)

    def joined(self) -> list[nn.Module]:
        return [nn.Sequential(self.stem, self.modules[0]), *self.modules[1:]]

    def everything(self) -> nn.ModuleDict:
        parts = {"stem": self.stem, "classifier": self.classifier}
        parts |= {f"module{i}": module for i, module in enumerate(self.modules)}
        parts |= {f"head{i}": head for i, head in enumerate(self.independent) if head is not None}
        parts |= {f"leap{i}": leap for i, leap in enumerate(self.leaps) if leap is not None}
        return nn.ModuleDict(parts)

    def trained(self) -> dict[str, nn.Parameter]:
        frozen = {id(weight) for twin in self.twins for weight in twin.block.parameters()}
        return {name: p for name, p in self.everything().named_parameters() if id(p) not in frozen}


def head_of(width: int) -> PooledLinear:
    return PooledLinear(nn.Linear(width, CLASSES))


def make_net(case: Case) -> Net:
    """Every copy, twin and norm gets weights of its own, so that no confusion of two of them stays unseen."""
    torch.manual_seed(0)
    stem = nn.Sequential(nn.Conv2d(2, WIDTHS[0], 3, 1, 1, bias=False), nn.BatchNorm2d(WIDTHS[0]), nn.ReLU())
    ends = zip((WIDTHS[0], *WIDTHS), WIDTHS, STRIDES, strict=False)
    modules = [Block(width_in, width, stride) for width_in, width, stride in ends]
    net = Net(case, stem, modules, head_of(WIDTHS[-1]))
    for i in range(DEPTH - 1):
        supervised = i >= case.first
        net.independent.append(head_of(WIDTHS[i]) if supervised else None)
        if not supervised:
            net.leaps.append(None)
        elif case.shared_leap and i == 4:
            net.leaps.append(net.leaps[3])
        else:
            chosen = (2, 5) if i < 2 else (4, 5) if i < 4 else (5,)
            sources = [modules[k] for k in chosen]
            copies, twins = copy.deepcopy(sources), copy.deepcopy(sources)
            if not case.twins_everywhere:
                del twins[1:]
            net.leaps.append(Leap(copies, twins, head_of(WIDTHS[-1])))
            pairs = zip(twins, sources, strict=False)
            net.twins += [Twin(twin, source, case.moves[i]) for twin, source in pairs]
    net.independent.append(None)
    net.leaps.append(None)
    for part in net.everything().double().modules():
        for weight in part.parameters(recurse=False):
            nn.init.normal_(weight, 1.0 if isinstance(part, nn.BatchNorm2d) else 0.0, 0.4)
    return net


def batches(count: int, dtype: torch.dtype = torch.float64) -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        images = torch.randn(7, 2, 6, 6, generator=generator, dtype=dtype)
        yield images, torch.randint(CLASSES, (7,), generator=generator)


class Naive:
    """The definition, loss by loss: the whole graph from the image, a detach at its reach, one gradient."""

    def __init__(self, net: Net) -> None:
        self.net, self.case, self.weights = net, net.case, net.trained()
        for norm in (part for part in net.everything().modules() if isinstance(part, nn.BatchNorm2d)):
            norm.track_running_stats = False
        self.velocity: dict[str, Tensor] = {}

    def losses(self) -> Iterator[tuple[str, float, int, int, nn.Module]]:
        """Name, weight, the module that the gradient ends in, the module tapped, the head."""
        net, last = self.net, DEPTH - 1
        far = max(0, last - self.case.reach + 1)
        for i, (head, leap) in enumerate(zip(net.independent, net.leaps, strict=True)):
            if head is not None and leap is not None:
                yield f"{i}.independent", 0.001, i, i, head
                yield f"{i}.cascaded", 0.999, max(0, i - self.case.reach + 1), i, leap
        if self.case.last == "both":
            yield f"{last}.independent", 0.001, last, last, net.classifier
            yield f"{last}.classifier", 0.999, far, last, net.classifier
        else:
            yield f"{last}.classifier", 1.0, far, last, net.classifier

    def logits(self, images: Tensor, begin: int, tap: int, head: nn.Module) -> Tensor:
        h = self.net.stem(images)
        for i in range(tap + 1):
            h = self.net.modules[i](h.detach() if i == begin > 0 else h)
        if not isinstance(head, Leap):
            return head(h)
        twins = [head.twins[str(t)] for t in range(len(head.twins))]
        h = head.blocks[0](h) + twins[0](h)
        for t in range(1, len(head.blocks)):
            h = head.blocks[t](h) + (twins[t](h) if self.case.twins_everywhere else 0)
        return head.head(h)

    def gradients(self, images: Tensor, labels: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The losses and the gradients of all weights, by name."""
        values, total = {}, {name: torch.zeros_like(weight) for name, weight in self.weights.items()}
        for loss_name, factor, begin, tap, head in self.losses():
            loss = F.cross_entropy(self.logits(images, begin, tap, head), labels)
            values[loss_name] = loss.detach()
            parts = torch.autograd.grad(factor * loss, list(self.weights.values()), allow_unused=True)
            for name, part in zip(self.weights, parts, strict=True):
                total[name] += 0 if part is None else part
        return values, total

    @torch.no_grad()
    def move_statistics(self, images: Tensor) -> None:
        """n updates with momentum m and the same batch are one with 1 - (1 - m)^n."""
        h = images
        for part, count in zip((self.net.stem, *self.net.modules), self.counts(), strict=True):

            def move(norm: nn.BatchNorm2d, inputs: tuple[Tensor, ...], n: int = count) -> None:
                keep, values = (1 - BN_MOMENTUM) ** n, inputs[0].transpose(0, 1).flatten(1)
                buffers = dict(norm.named_buffers())
                for name, now in (("mean", values.mean(1)), ("var", values.var(1, unbiased=True))):
                    buffers[f"running_{name}"].copy_(keep * buffers[f"running_{name}"] + (1 - keep) * now)
                buffers["num_batches_tracked"].add_(n)

            norms = [norm for norm in part.modules() if isinstance(norm, nn.BatchNorm2d)]
            hooks = [norm.register_forward_pre_hook(move) for norm in norms]
            h = part(h)
            for hook in hooks:
                hook.remove()

    def counts(self) -> tuple[int, ...]:
        return (self.case.stem_count, *self.case.counts)

    @torch.no_grad()
    def update(self, gradients: dict[str, Tensor]) -> None:
        for twin in self.net.twins:
            for phi, theta in zip(twin.block.parameters(), twin.source.parameters(), strict=True):
                for _ in range(twin.moves):
                    phi.copy_(MU * phi + (1 - MU) * theta)
        for name, weight in self.weights.items():
            gradient = gradients[name] + DECAY * weight
            known = self.velocity.get(name)
            self.velocity[name] = gradient if known is None else MOMENTUM * known + gradient
            weight -= RATE * (gradient + MOMENTUM * self.velocity[name])


def backbone_buffers(net: Net) -> dict[str, Tensor]:
    parts = {"stem": net.stem} | {f"module{i}": module for i, module in enumerate(net.modules)}
    return {f"{part}.{name}": b.double() for part, m in parts.items() for name, b in m.named_buffers()}


def difference(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> float:
    """The largest absolute difference; infinite when the names differ."""
    if ours.keys() != theirs.keys():
        return float("inf")
    return max(float((ours[name] - theirs[name]).detach().abs().max()) for name in ours)
