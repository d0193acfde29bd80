"""Vision transformers, torchvision's own: blocks over tokens (N, T, C), the first of them the class token."""

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torchvision.models.vision_transformer import VisionTransformer

from mlaan.errors import UserError
from mlaan.models.backbone import Backbone
from mlaan.models.convolution import take_channels

PATCH = 16
_WIDTHS = {"vit_s_16": (12, 6, 384, 1536), "vit_b_16": (12, 12, 768, 3072)}  # layers, heads, channels, MLP
NAMES = tuple(_WIDTHS)


class TokenStem(nn.Module):
    """What a VisionTransformer does before its first block, with that net's own weights."""

    def __init__(self, net: VisionTransformer) -> None:
        super().__init__()
        self.conv_proj = net.conv_proj
        self.class_token = net.class_token
        self.pos_embedding = net.encoder.pos_embedding
        self.dropout = net.encoder.dropout

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) -> tokens (N, 1 + patches, channels)."""
        patches = self.conv_proj(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_token.expand(len(images), -1, -1), patches], dim=1)
        return self.dropout(tokens + self.pos_embedding)


class ClassToken(nn.Module):
    """Tokens (N, T, C) -> the first of them, (N, C)."""

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens[:, 0]


def vit_backbone(net: VisionTransformer, name: str | None = None) -> Backbone:
    """A transformer's layers, all in one stage; LayerNorm, class token and head are the classifier."""
    classifier = nn.Sequential(net.encoder.ln, ClassToken(), net.heads)
    return Backbone(net, TokenStem(net), list(net.encoder.layers.children()), classifier, name=name)


def vit(name: str, num_classes: int, in_channels: int = 3, image_size: Sequence[int] = (224, 224)) -> Backbone:
    """One of NAMES for images of one size, in patches of 16 x 16 pixels.

    Raises:
        UserError: images that are not square, or whose side is no multiple of 16.
    """
    height, width = image_size
    if height != width or height % PATCH:
        raise UserError(
            f"model.name = {name!r} takes square images whose side is a multiple of {PATCH}, not {height}x{width}: "
            "choose another data set or backbone"
        )
    layers, heads, channels, hidden = _WIDTHS[name]
    net = VisionTransformer(height, PATCH, layers, heads, channels, hidden, num_classes=num_classes)
    take_channels(net, "conv_proj", in_channels, _initialise)
    return vit_backbone(net, name)


def _initialise(convolution: nn.Conv2d) -> None:
    fan_in = convolution.in_channels * convolution.kernel_size[0] * convolution.kernel_size[1]
    nn.init.trunc_normal_(convolution.weight, std=math.sqrt(1 / fan_in))
    nn.init.zeros_(cast(Tensor, convolution.bias))
