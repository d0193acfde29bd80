"""Backbones: what a person wants trained."""

import difflib
from typing import Any, cast

from torch import nn
from torchvision.models.resnet import ResNet

from mlaan.errors import UserError
from mlaan.models.backbone import Backbone, Block
from mlaan.models.meta import on_meta
from mlaan.models.resnet import BACKBONES, CifarResNet, resnet_backbone

__all__ = ["BACKBONES", "Backbone", "Block", "CifarResNet", "as_backbone", "build", "on_meta", "resnet_backbone"]


def build(name: str, num_classes: int, in_channels: int = 3) -> Backbone:
    """A freshly initialised backbone by its name in the config.

    Raises:
        UserError: no such name; the message gives the nearest.
    """
    if name not in BACKBONES:
        near = difflib.get_close_matches(name, BACKBONES, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(BACKBONES)}"
        raise UserError(f"model.name = {name!r} is not a backbone: {hint}")
    return BACKBONES[name](num_classes=num_classes, in_channels=in_channels)


def as_backbone(model: Backbone | nn.Module) -> Backbone:
    """`model` as a Backbone: one already, a ResNet known here, or any module with `stem`, `blocks` and `classifier`.

    Raises:
        UserError: none of these; the message shows how to list the parts.
    """
    if isinstance(model, Backbone):
        return model
    if isinstance(model, CifarResNet | ResNet):
        return resnet_backbone(model)
    if not all(hasattr(model, part) for part in ("stem", "blocks", "classifier")):
        raise UserError(
            f"model = {type(model).__name__} does not say what its blocks are: pass "
            "mlaan.Backbone(net, stem, blocks, classifier), or give it attributes of these three names"
        )
    view = cast(Any, model)
    return Backbone(model, view.stem, list(view.blocks), view.classifier)
