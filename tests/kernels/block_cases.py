"""Blocks of every kind that has a fused form, and what their plain twins give in float64."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from kernels.forms import randn
from mlaan_kernels.blocks import Cotangent


def shortcut(given: int, wanted: int, stride: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(given, wanted, 1, stride, bias=False), nn.BatchNorm2d(wanted))


def stem(*rest: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 5, 3, 2, 1, bias=False), nn.BatchNorm2d(5), nn.ReLU(inplace=True), *rest)


BLOCKS = {
    "bottleneck": lambda: Bottleneck(20, 5),
    "bottleneck-stride": lambda: Bottleneck(6, 3, 2, shortcut(6, 12, 2)),
    "bottleneck-groups": lambda: Bottleneck(16, 4, 1, None, groups=2, base_width=64),
    "basic": lambda: BasicBlock(7, 7),
    "basic-stride": lambda: BasicBlock(5, 9, 2, shortcut(5, 9, 2)),
    "stem": stem,
    "stem-pool": lambda: stem(nn.MaxPool2d(3, 2, 1)),
}
ODD = {
    "bias": lambda: nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.BatchNorm2d(5), nn.ReLU()),
    "dilated": lambda: nn.Sequential(nn.Conv2d(3, 5, 3, dilation=2, bias=False), nn.BatchNorm2d(5), nn.ReLU()),
    "ceil": lambda: stem(nn.MaxPool2d(2, ceil_mode=True)),
    "dilated-pool": lambda: stem(nn.MaxPool2d(2, 1, dilation=2)),
}
"""What `BLOCKS` have not: tried by the reference alone, because the kernels see nothing of it."""

SIZES = {"7x7": (7, 7), "1x1": (1, 1), "13x17": (13, 17)}


def plain_block(name: str, *, statistics: bool = True) -> Any:
    """A block in float64 with weights far from their usual start, so that no mistake hides behind a 0 or a 1."""
    torch.manual_seed(3)
    block = (BLOCKS | ODD)[name]().double()
    for part in block.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.normal_(part.weight, std=(part.in_channels / part.groups * part.kernel_size[0]) ** -0.5)
        elif isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.5, 1.5)
            part.weight.data[::3] *= -1
            nn.init.normal_(part.bias)
            if statistics:
                nn.init.normal_(part.running_mean)
                nn.init.uniform_(part.running_var, 0.5, 2)
            else:
                part.track_running_stats = False
                part.running_mean = part.running_var = part.num_batches_tracked = None
    return block


def in_channels(block: nn.Module) -> int:
    return next(part for part in block.modules() if isinstance(part, nn.Conv2d)).in_channels


def given(block: nn.Module, images: int, size: tuple[int, int], seed: int = 0) -> Tensor:
    """A block's input in float64."""
    return randn(images, in_channels(block), *size, dtype=torch.float64, seed=seed)


class Plain:
    """A block under plain autograd: the output and, for any cotangent, all gradients by the weights' names."""

    def __init__(self, block: nn.Module, x: Tensor) -> None:
        self.block = copy.deepcopy(block)
        self.x = x.clone().requires_grad_()
        self.y = self.block(self.x)

    def input_grad(self, cotangent: Cotangent) -> Tensor:
        return torch.autograd.grad(self.y, self.x, cotangent.like(self.y), retain_graph=True)[0]

    def weight_grads(self, cotangent: Cotangent) -> dict[str, Tensor]:
        weights = dict(self.block.named_parameters())
        grads = torch.autograd.grad(self.y, list(weights.values()), cotangent.like(self.y), retain_graph=True)
        return dict(zip(weights, grads, strict=True))


def cotangents(y: Tensor, kinds: Sequence[str]) -> list[Cotangent]:
    """In float64: "dense", "pooled" or "both"."""
    made = []
    for seed, kind in enumerate(kinds, start=10):
        dense = randn(*y.shape, dtype=torch.float64, seed=seed) if kind != "pooled" else None
        pooled = randn(*y.shape[:2], dtype=torch.float64, seed=seed + 50) if kind != "dense" else None
        made.append(Cotangent(dense, pooled))
    return made


def cast(cotangent: Cotangent, dtype: torch.dtype, device: str) -> Cotangent:
    dense = None if cotangent.dense is None else cotangent.dense.to(device, dtype)
    return Cotangent(dense, None if cotangent.pooled is None else cotangent.pooled.to(device, dtype))
