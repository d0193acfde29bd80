"""ConvNeXt, torchvision's own."""

from collections.abc import Sequence
from typing import cast

import torchvision.models as tv
from torch import nn
from torchvision.models.convnext import ConvNeXt

from mlaan.models.backbone import Backbone
from mlaan.models.convolution import take_channels

NAMES = ("convnext_tiny",)


def convnext_backbone(net: ConvNeXt, name: str | None = None) -> Backbone:
    """ConvNeXt's blocks; the first of stages 2 to 4 begins with the layers that halve the image."""
    stem, first, *rest = cast(nn.Sequential, net.features)
    stages = [list(cast(nn.Sequential, first))]
    for halve, stage in zip(rest[::2], rest[1::2], strict=True):
        head, *others = cast(nn.Sequential, stage)
        stages.append([nn.Sequential(halve, head), *others])
    return Backbone(
        net,
        stem,
        [block for stage in stages for block in stage],
        nn.Sequential(net.avgpool, net.classifier),
        stages=[number for number, stage in enumerate(stages, start=1) for _ in stage],
        name=name,
    )


def convnext(name: str, num_classes: int, in_channels: int = 3, image_size: Sequence[int] = (224, 224)) -> Backbone:
    """One of NAMES; it takes images of 32 x 32 and more. Its blocks skip themselves at random in training."""
    net = cast(ConvNeXt, tv.get_model(name, weights=None, num_classes=num_classes))
    take_channels(net, "features.0.0", in_channels, _initialise)
    return convnext_backbone(net, name)


def _initialise(convolution: nn.Conv2d) -> None:
    nn.init.trunc_normal_(convolution.weight, std=0.02)
    if convolution.bias is not None:
        nn.init.zeros_(convolution.bias)
