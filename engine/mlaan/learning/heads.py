"""Auxiliary classifiers: the small heads between a module's output and its loss."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F


class PoolLinear(nn.Module):
    """Global average pool and one linear layer: MLAAN's classifier c_i, and every method's light head.

    It is split in two so that the executor can differentiate up to the pooled features: the cotangent of the
    module's output is then one number per image and channel, never spread over the pixels.
    """

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, num_classes)

    def pool(self, h: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C), the mean over pixels."""
        return h.mean((2, 3))

    def classify(self, pooled: Tensor) -> Tensor:
        """(N, C) -> logits (N, classes)."""
        return self.linear(pooled)

    def forward(self, h: Tensor) -> Tensor:
        """(N, C, H, W) -> logits (N, classes)."""
        return self.classify(self.pool(h))


class DGLHead(nn.Module):
    """The auxiliary network of decoupled greedy learning (Belilovsky et al., ICML 2020, MLP-SR-aux).

    Average pool to a quarter of the side, three 1x1 convolution-BatchNorm-ReLU, pool to 2x2, three-layer perceptron.

    Args:
        shape: (C, H, W) of the tapped output.
        width: channels of the convolutions; the perceptron's hidden layers are four times as wide.
    """

    def __init__(self, shape: Sequence[int], num_classes: int, width: int = 128) -> None:
        super().__init__()
        channels, height, side = shape
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
        """(N, C, H, W) -> logits (N, classes)."""
        h = self.convolutions(F.adaptive_avg_pool2d(h, self.size))
        return self.perceptron(F.adaptive_avg_pool2d(h, 2).flatten(1))
