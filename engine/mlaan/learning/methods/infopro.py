"""InfoPro (Wang et al., ICLR 2021): local modules keep what the image holds and learn what the label needs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from mlaan.config import MethodConfig, setting
from mlaan.errors import UserError
from mlaan.learning.base import Auxiliary, channels, local_losses
from mlaan.learning.criteria import reconstruction
from mlaan.learning.decoder import Decoder
from mlaan.learning.heads import as_map, map_shape
from mlaan.learning.leap import initialise
from mlaan.learning.site import Normalisation, Site
from mlaan.learning.supervision import Supervision
from mlaan_kernels.contrast_loss import contrast_loss


@dataclass(frozen=True)
class InfoPro(MethodConfig, name="infopro"):
    """InfoPro: every module reconstructs the image and predicts, or contrasts, the label.

    min over theta_i and the head's weights of  l1_i BCE(decoder(h), image) + l2_i L(head(h), y),  h = f_i(sg h_{i-1}):
    reach 1. L is cross-entropy ("softmax") or the supervised contrastive loss on normalised embeddings
    ("contrastive"); l1, l2 go linearly from the first module to the last but one; the last has CE on the classifier.
    InfoPro* is InfoPro with cuts that balance memory: partition.cuts = "bytes".

    The defaults are the authors' for CIFAR-10, ResNet-32, K = 16 (blackfeather-wang/InfoPro-Pytorch). Their others,
    l1 and l2 from -> to, * for InfoPro*; found with the contrastive loss, ImageNet's with softmax:

    | CIFAR-10 ResNet-32  | K = 2: 5, 1; 4: 6 -> 1, 0 -> 2; 8: 5 -> 0, 0 -> 2; 16: 5 -> 0.2, 0.05 -> 0.5           |
    | CIFAR-10 ResNet-110 | K = 2: 5, 0.5; 4: 1 -> 0, 0 -> 1; 8: 5 -> 0, 0 -> 1; 16: 5 -> 0.5, 0 -> 1;             |
    |                     | 2*: 5, 0.1; 3* and 4*: 5 -> 5, 0 -> 0.1                                                |
    | SVHN ResNet-110     | K = 2: 1, 0.1; 4: 5 -> 0.5, 0 -> 1; 8: 5 -> 0.5, 0 -> 2; 16: 5 -> 0.5, 0.2 -> 1        |
    | STL-10 ResNet-110   | K = 2: 10, 1; 4: 20 -> 5, 0.2 -> 2; 8: 20 -> 5, 0.2 -> 1; 16: 20 -> 10, 0.5 -> 0.1;    |
    |                     | 2*: 20, 1; 3*: 20 -> 5, 0.5 -> 2; 4*: 20 -> 10, 0.5 -> 1                               |
    | ImageNet, K = 2*    | 5, 0.75; ResNet-152: 5, 1                                                              |
    """

    loss: Literal["softmax", "contrastive"] = setting("softmax", "what the label gives: cross-entropy, or contrast")
    first_reconstruction: float = setting(5.0, "l1 of the first module, the weight of the reconstruction")
    last_reconstruction: float = setting(0.2, "l1 of the last module but one")
    first_label: float = setting(0.05, "l2 of the first module, the weight of the label's loss")
    last_label: float = setting(0.5, "l2 of the last module but one")
    features: int = setting(128, "width of the head's hidden layer and of the contrasted embedding")
    temperature: float = setting(0.07, "of the contrastive loss")
    patches: int = setting(1, "cut the reconstruction into n x n patches, each with a decoder of its own, as HPFF does")

    def __post_init__(self) -> None:
        for name in ("first_reconstruction", "last_reconstruction", "first_label", "last_label"):
            if getattr(self, name) < 0:
                raise UserError(f"method.{name} = {getattr(self, name)} must not be negative")
        for name in ("features", "patches"):
            if getattr(self, name) < 1:
                raise UserError(f"method.{name} = {getattr(self, name)} must be at least 1")
        if self.temperature <= 0:
            raise UserError(f"method.temperature = {self.temperature} must be above 0: 0.07 is the paper's")

    def supervise(self, site: Site) -> Supervision:
        """A loss of reach 1 per module, on the backbone's own classifier at the last."""
        return Supervision(local_losses(site, self))

    def weights(self, module: int, modules: int) -> tuple[float, float]:
        """l1 and l2 of local module `module` of `modules`."""
        depth = module / (modules - 2) if modules > 2 else 0.0
        ends = (self.first_reconstruction, self.last_reconstruction), (self.first_label, self.last_label)
        l1, l2 = (first + (last - first) * depth for first, last in ends)
        return l1, l2

    def auxiliary(self, site: Site, module: int, shape: Sequence[int]) -> Auxiliary:
        """See Base. A reconstruction of weight 0 builds no decoder.

        Raises:
            UserError: the images' normalisation, which the reconstruction needs, is not known.
        """
        l1, l2 = self.weights(module, site.modules)
        if l1 and site.normalisation is None:
            raise UserError(
                "method.name = 'infopro' paints images in [0, 1], but normalisation = None: give Engine the "
                "normalisation=(mean, std) of the images, or set first_reconstruction and last_reconstruction to 0"
            )
        contrastive = self.loss == "contrastive"
        head = InfoProHead(
            label_head(shape, self.features if contrastive else site.classes, self.features, _widest(site)),
            Decoder(shape, site.image_shape, self.patches) if l1 else None,
            contrastive=contrastive,
        )
        # HPFF's code adds up the mean losses of the patches
        weights = (l1 * self.patches**2, l2)
        criterion = InfoProLoss(*weights, self.temperature, site.normalisation, self.loss == "contrastive")
        return Auxiliary(head, criterion, predicts=not contrastive)


class InfoProOutput(NamedTuple):
    """Logits (N, classes) or an embedding (N, features), and the painted image before its sigmoid, or None."""

    logits: Tensor | None
    embedding: Tensor | None
    pixels: Tensor | None


class InfoProHead(nn.Module):
    """The label's head beside the decoder."""

    def __init__(self, label: nn.Module, decoder: nn.Module | None, *, contrastive: bool) -> None:
        super().__init__()
        self.label, self.decoder, self.contrastive = label, decoder, contrastive

    def forward(self, h: Tensor) -> InfoProOutput:
        """(N, C, H, W) or (N, T, C) -> what the loss needs."""
        given = self.label(as_map(h))
        pixels = None if self.decoder is None else self.decoder(h)
        return InfoProOutput(None, given, pixels) if self.contrastive else InfoProOutput(given, None, pixels)


@dataclass(frozen=True, eq=False)
class InfoProLoss:
    """reconstruction * BCE + label * (CE or supervised contrast); see `InfoPro`."""

    reconstruction: float
    label: float
    temperature: float
    normalisation: Normalisation | None
    needs_classes: bool = False
    """Contrast pulls images of one class together."""

    def __call__(self, output: InfoProOutput, images: Tensor, labels: Tensor) -> Tensor:
        if output.logits is not None:
            loss = self.label * F.cross_entropy(output.logits, labels)
        else:
            assert output.embedding is not None
            loss = self.label * contrast_loss(output.embedding, labels, self.temperature)
        if output.pixels is not None:
            assert self.normalisation is not None
            loss = loss + self.reconstruction * reconstruction(output.pixels, images, self.normalisation)
        return loss


def label_head(shape: Sequence[int], outputs: int, hidden: int, widest: int) -> nn.Sequential:
    """3x3 convolution-BatchNorm-ReLU, global average pool, two linear layers.

    The convolution doubles the channels at stride 2, or keeps both where the backbone grows no wider. The authors'
    ImageNet head has four convolutions instead, of which the 3x3 ones are at most 512 wide: so are these.
    """
    given = map_shape(shape)[0]
    width, stride = (2 * given, 2) if given < widest else (given, 1)
    width = min(width, max(512, hidden))
    return nn.Sequential(
        initialise(nn.Sequential(nn.Conv2d(given, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width))),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(1),
        nn.Linear(width, hidden),
        nn.ReLU(),
        nn.Linear(hidden, outputs),
    )


def _widest(site: Site) -> int:
    return max(channels(shape) for shape in site.shapes)
