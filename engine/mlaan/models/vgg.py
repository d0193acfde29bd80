"""VGG: torchvision's own, and a form with one linear layer for images of about 32 x 32."""

from collections.abc import Sequence
from typing import cast

import torchvision.models as tv
from torch import Tensor, nn
from torchvision.models.vgg import VGG

from mlaan.models.backbone import Backbone
from mlaan.models.convolution import he_normal, take_channels

_CONVOLUTIONS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
CIFAR = tuple(f"vgg{depth}_cifar" for depth in _CONVOLUTIONS)
IMAGENET = tuple(f"vgg{depth}{end}" for depth in _CONVOLUTIONS for end in ("", "_bn"))


class CifarVGG(nn.Module):
    """VGG (Simonyan and Zisserman 2015, table 1: A, B, D, E) with BatchNorm and a single linear layer.

    Five stages of 3x3 convolutions, 64 to 512 channels wide, each stage with a 2x2 max pool behind it; the pools take
    the rest of an odd side along, so that images of any size fit. `features` has torchvision's names.

    Args:
        depth: 11, 13, 16 or 19, as of the net with three linear layers.
        num_classes: width of the classifier.
        in_channels: channels of the images.
    """

    def __init__(self, depth: int, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width, count in zip((64, 128, 256, 512, 512), _CONVOLUTIONS[depth], strict=True):
            for _ in range(count):
                layers += [nn.Conv2d(in_channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
                in_channels = width
            layers.append(nn.MaxPool2d(2, ceil_mode=True))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(512, num_classes)
        for layer in layers:
            if isinstance(layer, nn.Conv2d):
                he_normal(layer)
        nn.init.normal_(self.classifier.weight, 0, 0.01)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, num_classes) of images (N, in_channels, H, W)."""
        return self.classifier(self.avgpool(self.features(images)).flatten(1))


def vgg_backbone(net: CifarVGG | VGG, name: str | None = None) -> Backbone:
    """One block for each convolution, with its BatchNorm and ReLU; the stem is empty.

    A pool belongs to the block after it, so that the blocks of a stage have outputs of one size, and a leap network
    of stages' first blocks halves its images as the backbone does. The last pool is in the classifier.
    """
    blocks: list[list[nn.Module]] = []
    pools: list[nn.Module] = []
    stages: list[int] = []
    stage = 1
    for layer in cast(nn.Sequential, net.features):
        if isinstance(layer, nn.MaxPool2d):
            pools.append(layer)
            stage += 1
        elif isinstance(layer, nn.Conv2d):
            blocks.append([*pools, layer])
            stages.append(stage)
            pools = []
        else:
            blocks[-1].append(layer)
    classifier = nn.Sequential(*pools, net.avgpool, nn.Flatten(1), net.classifier)
    return Backbone(
        net, nn.Sequential(), [nn.Sequential(*block) for block in blocks], classifier, stages=stages, name=name
    )


def cifar_vgg(name: str, num_classes: int, in_channels: int = 3, image_size: Sequence[int] = (32, 32)) -> Backbone:
    """One of CIFAR; it takes images of any size."""
    depth = int(name.removeprefix("vgg").removesuffix("_cifar"))
    return vgg_backbone(CifarVGG(depth, num_classes, in_channels), name)


def vgg(name: str, num_classes: int, in_channels: int = 3, image_size: Sequence[int] = (224, 224)) -> Backbone:
    """One of IMAGENET; it takes images of 32 x 32 and more. Its classifier drops half of its units in training."""
    net = cast(VGG, tv.get_model(name, weights=None, num_classes=num_classes))
    take_channels(net, "features.0", in_channels, he_normal)
    return vgg_backbone(net, name)
