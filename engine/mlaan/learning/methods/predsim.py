"""PredSim (Nøkland & Eidnes, ICML 2019): every module predicts the class and matches the similarity of the labels."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from mlaan.config import MethodConfig, setting
from mlaan.errors import UserError
from mlaan.learning.base import Auxiliary, local_losses
from mlaan.learning.heads import as_map, map_shape
from mlaan.learning.site import Site
from mlaan.learning.supervision import Supervision
from mlaan_kernels.similarity_loss import similarity_loss


@dataclass(frozen=True)
class PredSim(MethodConfig, name="predsim"):
    """PredSim: every module has a linear classifier and a convolution whose similarities follow the labels'.

    min over theta_i and the head's weights of  (1 - b) CE(linear(pool(h)), y) + b mean (S(conv3x3(h)) - S(onehot y))^2
    with h = f_i(sg h_{i-1}): reach 1. S: cosine similarities of centred rows (`similarity_loss`).

    From the authors' code (anokland/local-loss): b = 0.99, the features average-pooled until at most 4,096 numbers go
    into the linear layer, whose weights start at 0. There every convolution has a loss, here every module.
    """

    share: float = setting(0.99, "b, the share of similarity matching in the loss, 0 to 1")
    inputs: int = setting(4096, "most numbers that the linear layer reads; the features are pooled to it")

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise UserError(f"method.share = {self.share} must be from 0 to 1")
        if self.inputs < 1:
            raise UserError(f"method.inputs = {self.inputs} must be at least 1")

    def supervise(self, site: Site) -> Supervision:
        """A loss of reach 1 per module, on the backbone's own classifier at the last."""
        return Supervision(local_losses(site, self))

    def auxiliary(self, site: Site, module: int, shape: Sequence[int]) -> Auxiliary:
        """See Base."""
        head = PredSimHead(shape, site.classes, self.inputs)
        return Auxiliary(head, PredSimLoss(self.share, site.classes))


class PredSimOutput(NamedTuple):
    """Logits (N, classes), and the map (N, C, H, W) whose similarities are compared."""

    logits: Tensor
    features: Tensor


class PredSimHead(nn.Module):
    """Average pool to at most `inputs` numbers and one linear layer; beside it a 3x3 convolution without bias.

    Args:
        shape: (C, H, W) or (T, C) of the tapped features.
    """

    def __init__(self, shape: Sequence[int], num_classes: int, inputs: int = 4096) -> None:
        super().__init__()
        channels, height, width = map_shape(shape)
        while channels * height * width > inputs and height * width > 1:
            if height >= width:
                height = -(-height // 2)
            else:
                width = -(-width // 2)
        self.size = (height, width)
        self.linear = nn.Linear(channels * height * width, num_classes)
        nn.init.zeros_(self.linear.weight)
        self.convolution = nn.Conv2d(channels, channels, 3, padding=1, bias=False)

    def forward(self, h: Tensor) -> PredSimOutput:
        """(N, C, H, W) or (N, T, C) -> logits and features."""
        h = as_map(h)
        return PredSimOutput(self.linear(F.adaptive_avg_pool2d(h, self.size).flatten(1)), self.convolution(h))


@dataclass(frozen=True)
class PredSimLoss:
    """(1 - share) CE + share similarity matching; see `PredSim`."""

    share: float
    num_classes: int

    def __call__(self, output: PredSimOutput, images: Tensor, labels: Tensor) -> Tensor:
        prediction = F.cross_entropy(output.logits, labels)
        matching = similarity_loss(output.features, labels, self.num_classes)
        return (1 - self.share) * prediction + self.share * matching
