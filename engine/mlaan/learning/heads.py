"""Auxiliary classifiers: the small heads between a module's output and its loss.

Features are maps (N, C, H, W) or a transformer's tokens (N, T, C).
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mlaan.errors import UserError


class PoolLinear(nn.Module):
    """Global average pool and one linear layer: MLAAN's classifier c_i, and every method's light head.

    It is split in two so that the executor can differentiate up to the pooled features: the cotangent of the
    module's output is then one number per image and channel, never spread over the pixels.
    """

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, num_classes)

    def pool(self, h: Tensor) -> Tensor:
        """(N, C, H, W) or (N, T, C) -> (N, C), the mean over pixels or tokens."""
        return h.mean((2, 3)) if h.ndim == 4 else h.mean(1)

    def classify(self, pooled: Tensor) -> Tensor:
        """(N, C) -> logits (N, classes)."""
        return self.linear(pooled)

    def forward(self, h: Tensor) -> Tensor:
        """(N, C, H, W) or (N, T, C) -> logits (N, classes)."""
        return self.classify(self.pool(h))


def pool_linear(head: nn.Module) -> nn.Linear | None:
    """The linear layer of a head that is a global average pool and that layer, as a ResNet's own classifier is too."""
    if isinstance(head, PoolLinear):
        return head.linear
    if type(head) is nn.Sequential and len(head) == 3:
        pool, flatten, linear = head
        pools = type(pool) is nn.AdaptiveAvgPool2d and pool.output_size in (1, (1, 1))
        if pools and type(flatten) is nn.Flatten and flatten.start_dim == 1 and type(linear) is nn.Linear:
            return linear
    return None


def as_map(h: Tensor) -> Tensor:
    """Features as a map (N, C, H, W), for convolutional heads.

    Tokens (N, T, C) are laid out as the square image of patches that they are; where T - 1 is a square, the first is
    a class token and is left out.
    """
    if h.ndim == 4:
        return h
    side = map_shape(h.shape[1:])[1]
    return h[:, -side * side :].transpose(1, 2).unflatten(2, (side, side))


def map_shape(shape: Sequence[int]) -> tuple[int, int, int]:
    """Shape (C, H, W) of `as_map` for features of `shape`, (C, H, W) or (T, C).

    Raises:
        UserError: the tokens are no square image of patches.
    """
    if len(shape) == 3:
        return shape[0], shape[1], shape[2]
    tokens, channels = shape
    for patches in (tokens, tokens - 1):
        side = math.isqrt(patches)
        if side * side == patches and side:
            return channels, side, side
    raise UserError(f"{tokens} tokens are no square image of patches: use heads that pool, such as base 'light'")


def halve(h: Tensor) -> Tensor:
    """Features averaged 2 x 2 over pixels; at odd sizes the last row and column average what is there.

    Of tokens the patches are averaged, and a class token stays.
    """
    small = F.avg_pool2d(as_map(h), 2, ceil_mode=True)
    if h.ndim == 4:
        return small
    patches = small.flatten(2).transpose(1, 2)
    side = map_shape(h.shape[1:])[1]
    return torch.cat([h[:, : h.shape[1] - side * side], patches], 1)


class DGLHead(nn.Module):
    """The auxiliary network of decoupled greedy learning (Belilovsky et al., ICML 2020, MLP-SR-aux).

    Average pool to a quarter of the side, three 1x1 convolution-BatchNorm-ReLU, pool to 2x2, three-layer perceptron.

    Args:
        shape: (C, H, W) or (T, C) of the tapped features.
        width: channels of the convolutions; the perceptron's hidden layers are four times as wide.
    """

    def __init__(self, shape: Sequence[int], num_classes: int, width: int = 128) -> None:
        super().__init__()
        channels, height, side = map_shape(shape)
        self.size = (-(-height // 4), -(-side // 4))
        convolutions: list[nn.Module] = []
        for i in range(3):
            convolutions += [
                nn.Conv2d(width if i else channels, width, 1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
            ]
        self.convolutions = nn.Sequential(*convolutions)
        hidden = 4 * width
        perceptron: list[nn.Module] = []
        for _ in range(2):
            perceptron += [nn.Linear(hidden, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU()]
        self.perceptron = nn.Sequential(*perceptron, nn.Linear(hidden, num_classes))

    def forward(self, h: Tensor) -> Tensor:
        """(N, C, H, W) or (N, T, C) -> logits (N, classes)."""
        h = self.convolutions(F.adaptive_avg_pool2d(as_map(h), self.size))
        return self.perceptron(F.adaptive_avg_pool2d(h, 2).flatten(1))
