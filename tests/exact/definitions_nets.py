"""The nets that methods are tried on, and the comparison of an engine's gradients with a method's plain definition."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from exact.compare import gap
from exact.definitions import gradients
from exact.definitions_bases import Ground
from mlaan import Engine
from mlaan.config import MethodConfig
from mlaan.models import build

NORMALISATION = ((0.4, 0.5, 0.6), (0.25, 0.2, 0.3))
CLASSES = 10


@dataclass(frozen=True)
class Net:
    """A backbone with its cut and its leaps, by hand; blocks are stage.index.

    Attributes:
        name, size, cuts: for the engine.
        stages: blocks in each stage.
        leaps: for the last block of every module what its leap network copies.
        short_leaps: the same for short ones.
    """

    name: str
    size: int
    cuts: str
    stages: tuple[int, ...]
    leaps: dict[str, str]
    short_leaps: dict[str, str] = field(default_factory=dict)

    @property
    def labels(self) -> list[str]:
        return [f"{stage}.{i}" for stage, count in enumerate(self.stages, start=1) for i in range(count)]

    @property
    def ends(self) -> list[str]:
        return [*self.leaps, self.labels[-1]]


RESNET32 = Net(
    "resnet32", 16, "published", (5, 5, 5),
    {
        "1.0": "2.0 3.0 3.2 3.4", "1.2": "2.0 3.0 3.2 3.4", "1.4": "2.0 3.0 3.3 3.4", "2.1": "3.0 3.2 3.3 3.4",
        "2.3": "3.0 3.2 3.3 3.4", "3.0": "3.2 3.3 3.4", "3.2": "3.3 3.4",
    },
    {f"{stage}.{i}": ("2.0 3.0 3.4", "3.0 3.4", "3.4")[stage - 1] for stage in (1, 2, 3) for i in range(5)},
)  # fmt: skip
RESNET50 = Net(
    "resnet50", 64, "even", (3, 4, 6, 3),
    {"2.0": "3.0 4.0 4.1 4.2", "3.0": "4.0 4.1 4.2", "3.4": "4.0 4.1 4.2"},
    {"2.0": "3.0 4.0 4.2", "3.0": "4.0 4.2", "3.4": "4.0 4.2"},
)  # fmt: skip
VIT_S = Net(
    "vit_s_16", 64, "even", (12,),
    {"1.2": "1.3 1.4 1.11", "1.5": "1.6 1.7 1.11", "1.8": "1.9 1.10 1.11"},
    {"1.2": "1.11", "1.5": "1.11", "1.8": "1.11"},
)  # fmt: skip


@dataclass
class Trial:
    """An engine, and a copy of its network and heads for the definition; `copy_of` finds a weight's copy by its id."""

    method: MethodConfig
    engine: Engine
    ground: Ground
    copy_of: dict[int, Any]


def make_trial(net: Net, method: MethodConfig, samples: int = 4, *, soft: bool = False, **memory: Any) -> Trial:
    """In float64. All weights are moved a little, so that no confusion of a block with its copies stays unseen.

    `soft`: the labels are probabilities, as mixup and CutMix make them.
    """
    torch.manual_seed(0)
    shape = (3, net.size, net.size)
    backbone = build(net.name, CLASSES, image_size=shape[1:])
    backbone.net.double()
    engine = Engine(
        backbone, method, len(net.ends), input_shape=shape, cuts=net.cuts, normalisation=NORMALISATION, **memory
    )
    blocks = {block.label: block.module for block in backbone.blocks}
    heads = {loss.name: loss.head for loss in engine.supervision.losses if loss.head is not backbone.classifier}
    ancestry = {
        id(block): (like(block, blocks, torch.equal), like(block, blocks, lambda p, q: p.shape == q.shape))
        for network in engine.heads.modules()
        for block in [*getattr(network, "blocks", ()), *getattr(network, "twins", {}).values()]
    }
    with torch.no_grad():
        for p in [*backbone.net.parameters(), *engine.heads.parameters()]:
            p *= 1 + 0.2 * torch.randn(())
            p += 0.1 * torch.randn_like(p) if p.ndim < 2 or not p.any() else 0
    memo: dict[int, Any] = {}
    stem, blocks, classifier, heads = copy.deepcopy((backbone.stem, blocks, backbone.classifier, heads), memo)
    parts: list[list[nn.Module]] = [[stem]]
    for label, block in blocks.items():
        parts[-1].append(block)
        if label in net.leaps:
            parts.append([])
    pixels = torch.rand(samples, *shape, dtype=torch.float64)
    labels = torch.arange(samples) // 2 * 3
    if soft:
        labels = torch.rand(samples, CLASSES, dtype=torch.float64).softmax(1)
    mean, deviation = (torch.tensor(v, dtype=torch.float64)[:, None, None] for v in NORMALISATION)
    ground = Ground(
        parts, net.ends, blocks, outputs(parts, blocks, shape), net.leaps, net.short_leaps, classifier, heads,
        {id(memo[key]): copies for key, (copies, _) in ancestry.items()},
        {id(memo[key]): alike for key, (_, alike) in ancestry.items()},
        (pixels - mean) / deviation, labels, NORMALISATION,
    )  # fmt: skip
    return Trial(method, engine, ground, memo)


def like(block: nn.Module, blocks: dict[str, nn.Module], alike: Callable[[Tensor, Tensor], bool]) -> set[str]:
    """The blocks all whose weights are like this one's."""
    own = list(block.parameters())
    weights = {label: list(other.parameters()) for label, other in blocks.items()}
    return {label for label, ps in weights.items() if len(ps) == len(own) and all(map(alike, own, ps))}


def outputs(parts: list[list[nn.Module]], blocks: dict[str, nn.Module], shape: Sequence[int]) -> dict[str, Any]:
    """Output shape of every block for one image."""
    h, shapes = torch.zeros(2, *shape, dtype=torch.float64), []
    with torch.no_grad():
        for layer in (layer for part in parts for layer in part):
            h = layer(h)
            shapes.append(tuple(h.shape[1:]))
    return dict(zip(blocks, shapes[1:], strict=True))


def differences(trial: Trial) -> dict[str, float]:
    """Relative distance of every loss and every weight's gradient from the definition's.

    A gradient that is rounding alone is relative to the largest there is.
    """
    engine, ground = trial.engine, trial.ground
    result = engine.gradients(ground.images, ground.labels)
    values = gradients(trial.method, ground)
    assert tuple(values) == engine.loss_names
    found = {name: gap(ours, values[name]) for name, ours in zip(engine.loss_names, result.losses, strict=True)}
    pairs = {
        name: (p.grad, trial.copy_of[id(p)].grad)
        for part in (engine.backbone.net, engine.heads)
        for name, p in part.named_parameters()
    }
    largest = max(theirs.norm().item() for _, theirs in pairs.values() if theirs is not None)
    for name, (ours, theirs) in pairs.items():
        if ours is None or theirs is None:
            given = theirs if ours is None else ours
            found[name] = 0.0 if given is None or not given.any() else float("inf")
        else:
            small = 1e-14 * largest
            found[name] = 0.0 if (ours - theirs).norm().item() < small else gap(ours, theirs)
    return found
