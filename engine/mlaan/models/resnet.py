"""Residual networks: the CIFAR family, and torchvision's own for ImageNet-size images."""

from collections.abc import Sequence
from typing import cast

import torchvision.models as tv
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, ResNet

from mlaan.models.backbone import Backbone
from mlaan.models.convolution import he_normal, take_channels

CIFAR = tuple(f"resnet{depth}" for depth in (20, 32, 44, 56, 110, 1202))
IMAGENET = (
    *(f"resnet{depth}" for depth in (18, 34, 50, 101, 152)),
    "resnext101_32x8d",
    "wide_resnet50_2",
    "wide_resnet101_2",
)


class CifarResNet(nn.Module):
    """ResNet of 6n + 2 layers for images of about 32 x 32 (He et al. 2016, section 4.2).

    Three stages of n basic blocks, 16, 32 and 64 channels wide; a stage that halves the image begins with a 1x1
    convolution and BatchNorm on its shortcut, as the codes of local learning do (0.467 M parameters for ResNet-32).

    Args:
        depth: 20, 32, 44, 56, 110, 1202 or any other 6n + 2.
        num_classes: width of the classifier.
        in_channels: channels of the images.
    """

    def __init__(self, depth: int, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(f"depth = {depth} is not 6n + 2")
        self.conv1 = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU(inplace=True)
        for stage, (width_in, width) in enumerate([(16, 16), (16, 32), (32, 64)], start=1):
            stride = 1 if stage == 1 else 2
            shortcut = None
            if stride != 1:
                shortcut = nn.Sequential(nn.Conv2d(width_in, width, 1, stride, bias=False), nn.BatchNorm2d(width))
            blocks = [BasicBlock(width_in, width, stride, shortcut)]
            blocks += [BasicBlock(width, width) for _ in range((depth - 2) // 6 - 1)]
            setattr(self, f"layer{stage}", nn.Sequential(*blocks))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                he_normal(module)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, num_classes) of images (N, in_channels, H, W)."""
        h = self.relu(self.bn1(self.conv1(images)))
        for stage in (1, 2, 3):
            h = getattr(self, f"layer{stage}")(h)
        return self.fc(self.avgpool(h).flatten(1))


def resnet_backbone(net: CifarResNet | ResNet) -> Backbone:
    """The stem, residual blocks and classifier of a CIFAR or torchvision ResNet, with its own state-dict names.

    Its name is resnet<layers>, counted, because the published cuts and leap tables go by it. ResNeXt and wide nets
    have torchvision's names for them, so that no table of a plain ResNet is taken for theirs.
    """
    stem = [net.conv1, net.bn1, net.relu]
    if isinstance(net, ResNet):
        stem.append(net.maxpool)
    layers = [getattr(net, f"layer{stage}") for stage in range(1, 5 if isinstance(net, ResNet) else 4)]
    blocks = [block for layer in layers for block in layer]
    depth = (2 if isinstance(blocks[0], BasicBlock) else 3) * len(blocks) + 2
    name = f"resnet{depth}"
    if isinstance(net, ResNet) and net.groups > 1:
        name = f"resnext{depth}_{net.groups}x{net.base_width}d"
    elif isinstance(net, ResNet) and net.base_width != 64:
        name = f"wide_resnet{depth}_{net.base_width // 64}"
    return Backbone(
        net,
        nn.Sequential(*stem),
        blocks,
        nn.Sequential(net.avgpool, nn.Flatten(1), net.fc),
        stages=[stage for stage, layer in enumerate(layers, start=1) for _ in layer],
        name=name,
    )


def cifar_resnet(name: str, num_classes: int, in_channels: int = 3, image_size: Sequence[int] = (32, 32)) -> Backbone:
    """One of CIFAR; it takes images of any size."""
    return resnet_backbone(CifarResNet(int(name.removeprefix("resnet")), num_classes, in_channels))


def resnet(name: str, num_classes: int, in_channels: int = 3, image_size: Sequence[int] = (224, 224)) -> Backbone:
    """One of IMAGENET; it takes images of any size."""
    net = cast(ResNet, tv.get_model(name, weights=None, num_classes=num_classes))
    take_channels(net, "conv1", in_channels, he_normal)
    return resnet_backbone(net)
