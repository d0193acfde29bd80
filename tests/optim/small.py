"""Two small modules with twins for the optimizer, and each rule written out."""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mlaan.config import AdamWConfig, LAMBConfig, LARSConfig, OptimConfig, SGDConfig
from mlaan.learning import Twin
from mlaan.optim import Optimizer

CONFIGS: dict[str, OptimConfig] = {
    "sgd": SGDConfig(learning_rate=0.1, weight_decay=0.01),
    "sgd-plain": SGDConfig(learning_rate=0.1, weight_decay=0.0, momentum=0.0, nesterov=False),
    "lars": LARSConfig(learning_rate=0.5, weight_decay=0.01, trust=0.02),
    "adamw": AdamWConfig(learning_rate=0.01, weight_decay=0.1),
    "lamb": LAMBConfig(learning_rate=0.02, weight_decay=0.1),
}
IN_TORCH = ("sgd", "sgd-plain", "adamw")
CHOICES = [(name, "native") for name in CONFIGS] + [(name, "torch") for name in IN_TORCH]
choices = pytest.mark.parametrize(("name", "backend"), CHOICES)


@dataclass
class Small:
    """Modules, their twins as (source, block, keep), and the optimizer of all."""

    modules: nn.ModuleList
    twins: list[Twin]
    optimizer: Optimizer

    def tensors(self) -> list[Tensor]:
        """Everything that steps move, with the optimizer's own; copies."""
        blocks = [tensor for twin in self.twins for tensor in twin.block.parameters()]
        return [t.detach().clone() for t in (*self.modules.parameters(), *blocks, *self.optimizer.tensors())]

    def give(self, seed: int, size: float = 1.0) -> None:
        """Draws the gradients of all trained weights."""
        random = torch.Generator().manual_seed(seed)
        for weight in self.modules.parameters():
            grad = size * torch.randn(weight.shape, generator=random, dtype=torch.float64)
            weight.grad = grad.to(weight) if weight.requires_grad else None

    def step(self, seed: int, finite: Sequence[Tensor | None] = (None, None), size: float = 1.0) -> None:
        """Gradients, and the updates of both modules as an executor calls them."""
        self.give(seed, size)
        if self.optimizer.config.clip == "global":
            self.optimizer.measure_norm(finite)
        for group in (1, 0):
            self.optimizer.update(group, finite[group])


def make(
    name: str, backend: str = "native", dtype: torch.dtype = torch.float64, device: str = "cpu", **settings: Any
) -> Small:
    """A convolution with two twins beside a BatchNorm; a linear layer, and a frozen one with a twin."""
    torch.manual_seed(0)
    conv, bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
    linear, frozen = nn.Linear(6, 5), nn.Linear(5, 2).requires_grad_(False)
    modules = nn.ModuleList([nn.Sequential(conv, bn), nn.Sequential(linear, frozen)])
    modules.to(device, dtype, memory_format=torch.channels_last)
    twin_dtype = torch.float32 if dtype == torch.bfloat16 else dtype
    twins = []
    for source, keep in ((conv, 0.9), (conv, 0.95), (linear, 0.9), (frozen, 0.9)):
        block = copy.deepcopy(source).to(twin_dtype).requires_grad_(False)
        nn.init.normal_(block.weight)
        twins.append(Twin(block, source, keep))
    config = replace(CONFIGS[name], backend=backend, **settings)
    names = {weight: weight_name for weight_name, weight in modules.named_parameters()}
    groups = [list(module.parameters()) for module in modules]
    return Small(modules, twins, Optimizer(groups, twins, names, config))


def assert_equal(actual: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    """Bit for bit."""
    assert len(actual) == len(expected)
    for a, e in zip(actual, expected, strict=True):
        assert a.dtype == e.dtype
        assert torch.equal(a, e)


def gap(actual: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Largest difference, relative to the largest element of its tensor (or to 1)."""
    pairs = zip(actual, expected, strict=True)
    return max(((a.double() - e.double()).abs().max() / e.abs().max().clamp(min=1)).item() for a, e in pairs)


def defined(config: OptimConfig, weights: Sequence[Tensor], grads: Iterator[Sequence[Tensor]]) -> list[Tensor]:
    """LARS and LAMB in float64, weight by weight, as in the papers' algorithms; a list of gradients for each step."""
    moved = [weight.detach().double().clone() for weight in weights]
    first = [torch.zeros_like(weight) for weight in moved]
    second = [torch.zeros_like(weight) for weight in moved]
    rate = config.learning_rate
    for t, some in enumerate(grads, 1):
        for i, (w, g) in enumerate(zip(moved, some, strict=True)):
            decay = config.weight_decay if w.ndim > 1 else 0.0
            if isinstance(config, LARSConfig):
                ratio = config.trust * w.norm() / (g.norm() + decay * w.norm()) if w.ndim > 1 else 1.0
                first[i] = config.momentum * first[i] + rate * ratio * (g + decay * w)
                moved[i] = w - first[i]
            else:
                assert isinstance(config, LAMBConfig)
                b1, b2 = config.betas
                first[i] = b1 * first[i] + (1 - b1) * g
                second[i] = b2 * second[i] + (1 - b2) * g**2
                step = (first[i] / (1 - b1**t)) / ((second[i] / (1 - b2**t)).sqrt() + config.epsilon) + decay * w
                ratio = w.norm() / step.norm() if w.ndim > 1 else 1.0
                moved[i] = w - rate * ratio * step
    return moved
