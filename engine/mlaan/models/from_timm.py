"""timm's models as backbones: `timm:NAME`. The package is optional."""

import difflib
import importlib.util
import warnings
from collections.abc import Sequence

import torch

from mlaan.config.values import any_of
from mlaan.errors import UserError
from mlaan.models.backbone import Backbone
from mlaan.models.views import as_backbone

PREFIX = "timm:"


def timm_backbone(name: str, num_classes: int, image_shape: Sequence[int], *, pretrained: bool = False) -> Backbone:
    """timm's model `name`, written timm:NAME, for images of `image_shape` (C, H, W), with timm's weight names.

    Args:
        pretrained: with timm's default weights, out of its cache or from a network; where they are for another number
            of classes, the last layer starts afresh and a warning says so.

    Raises:
        UserError: timm is not installed, has no such model or no weights for it; the blocks cannot be listed.
    """
    if importlib.util.find_spec("timm") is None:
        raise UserError(f"model.name = {name!r} needs the package 'timm': pip install 'mlaan[timm]'")
    import timm

    plain = name.removeprefix(PREFIX)
    if not timm.is_model(plain):
        near = [repr(PREFIX + other) for other in difflib.get_close_matches(plain, timm.list_models(), n=3)]
        hint = f"did you mean {any_of(near)}?" if near else "see timm.list_models()"
        raise UserError(f"model.name = {name!r} is no model of timm {timm.__version__}: {hint}")
    meta = torch.get_default_device().type == "meta"
    pretrained &= not meta
    facts = timm.get_pretrained_cfg(plain)
    channels, *size = image_shape
    options = {}
    if facts is not None and facts.fixed_input_size and tuple(size) != tuple(facts.input_size[1:]):
        options["img_size"] = tuple(size)
    try:
        with torch.device("cpu"):  # some of timm's models compute with numbers of tensors while they are built
            net = timm.create_model(plain, pretrained=pretrained, num_classes=num_classes, in_chans=channels, **options)
    except Exception as error:  # timm's models and the hub's client raise errors of many kinds
        told = f"{type(error).__name__}: {error}"
        if pretrained:
            told += ": its weights need a network or timm's cache, or set model.weights = FILE"
        raise UserError(
            f"model.name = {name!r} cannot be made for images of {'x'.join(map(str, image_shape))}, {told}"
        ) from error
    if pretrained and facts is not None and facts.num_classes != num_classes:
        warnings.warn(
            f"model.weights = 'pretrained' has {facts.num_classes} classes, the data have {num_classes}: "
            "the last layer starts afresh",
            stacklevel=2,
        )
    try:
        view = as_backbone(net.to("meta") if meta else net, image_shape)
    except UserError as error:
        raise UserError(
            f"model.name = {name!r} cannot be used as it is: {error}; docs/backbones.md shows how to list a net's "
            "blocks in a file of your own"
        ) from error
    blocks, stages = [block.module for block in view.blocks], [block.stage for block in view.blocks]
    return Backbone(net, view.stem, blocks, view.classifier, stages=stages, name=name)
