"""Backbones by name: this package's and torchvision's, timm's, and those of a user's own file."""

import difflib
from collections.abc import Sequence
from functools import partial
from typing import Protocol

from mlaan.config.values import any_of
from mlaan.errors import UserError
from mlaan.models import convnext, resnet, vgg, vit
from mlaan.models.backbone import Backbone
from mlaan.models.from_timm import PREFIX, timm_backbone
from mlaan.models.own import is_own, own_net
from mlaan.models.views import as_backbone
from mlaan.models.weights import load_weights


class Maker(Protocol):
    """Makes one named backbone, freshly initialised."""

    def __call__(self, num_classes: int, in_channels: int = ..., image_size: Sequence[int] = ...) -> Backbone: ...


_FAMILIES = (
    (resnet.CIFAR, resnet.cifar_resnet),
    (vgg.CIFAR, vgg.cifar_vgg),
    (resnet.IMAGENET, resnet.resnet),
    (vgg.IMAGENET, vgg.vgg),
    (convnext.NAMES, convnext.convnext),
    (vit.NAMES, vit.vit),
)
BACKBONES: dict[str, Maker] = {name: partial(make, name) for names, make in _FAMILIES for name in names}


def build(
    name: str,
    num_classes: int,
    in_channels: int = 3,
    image_size: Sequence[int] = (224, 224),
    weights: str = "",
) -> Backbone:
    """A backbone by its name in the config: one of BACKBONES, timm:NAME, or FILE.py:FUNCTION.

    Under `with torch.device("meta")` it is built there, and no weights are read.

    Args:
        num_classes: width of the classifier.
        in_channels, image_size: of the images; (H, W) in pixels. Vision transformers are made for one size.
        weights: "" draws the weights anew; "pretrained" or a file: see `load_weights`.

    Raises:
        UserError: no such name (the message gives the nearest), no such weights, images that do not fit, or a net
            that cannot be listed.
    """
    shape = (in_channels, *image_size)
    if name.startswith(PREFIX):
        backbone = timm_backbone(name, num_classes, shape, pretrained=weights == "pretrained")
        weights = "" if weights == "pretrained" else weights
    elif is_own(name):
        backbone = as_backbone(own_net(name, num_classes, shape), shape)
    elif name in BACKBONES:
        backbone = BACKBONES[name](num_classes, in_channels, image_size)
    else:
        raise UserError(f"model.name = {name!r} is not a backbone: {_hint(name)}")
    if backbone.num_classes != num_classes:
        raise UserError(
            f"model.name = {name!r} makes a net of {backbone.num_classes} classes, the data have {num_classes}: "
            "let its last linear layer have num_classes"
        )
    if weights:
        load_weights(backbone, name, weights)
    return backbone


def _hint(name: str) -> str:
    file, colon, function = name.partition(":")
    if colon:
        return f"a net of your own is FILE.py:FUNCTION, so did you mean {f'{file}.py:{function}'!r}?"
    near = difflib.get_close_matches(name, BACKBONES, n=3)
    if near:
        return f"did you mean {any_of([*map(repr, near)])}?"
    return f"choose from {', '.join(BACKBONES)}, timm:NAME or FILE.py:FUNCTION"
