"""Backbones: what a person wants trained."""

from mlaan.models.backbone import Backbone, Block
from mlaan.models.meta import borrowed, on_meta
from mlaan.models.resnet import CifarResNet, resnet_backbone
from mlaan.models.vgg import CifarVGG
from mlaan.models.views import as_backbone
from mlaan.models.zoo import BACKBONES, build

__all__ = [
    "BACKBONES",
    "Backbone",
    "Block",
    "CifarResNet",
    "CifarVGG",
    "as_backbone",
    "borrowed",
    "build",
    "on_meta",
    "resnet_backbone",
]
