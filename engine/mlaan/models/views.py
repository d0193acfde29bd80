"""From a network that somebody brings to a Backbone."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, cast

import torch
from torch import nn
from torchvision.models.convnext import ConvNeXt
from torchvision.models.resnet import ResNet
from torchvision.models.vgg import VGG
from torchvision.models.vision_transformer import VisionTransformer

from mlaan.errors import UserError
from mlaan.models.backbone import Backbone
from mlaan.models.convnext import convnext_backbone
from mlaan.models.listing import channels_first, list_blocks
from mlaan.models.resnet import CifarResNet, resnet_backbone
from mlaan.models.vgg import CifarVGG, vgg_backbone
from mlaan.models.vit import vit_backbone

_FAMILIES = (
    (CifarResNet | ResNet, resnet_backbone),
    (CifarVGG | VGG, vgg_backbone),
    (ConvNeXt, convnext_backbone),
    (VisionTransformer, vit_backbone),
)
_TOLERANCE = 1e-5
"""Greatest difference of logits, as a share of the largest: the same sums in another order, in float32."""


def as_backbone(model: Backbone | nn.Module, image_shape: Sequence[int] | None = None) -> Backbone:
    """`model` as a Backbone, whatever lists its blocks.

    In this order: a Backbone itself; this package's and torchvision's ResNets, VGGs, ConvNeXts and vision
    transformers; a module with `stem`, `blocks` and `classifier`; an `nn.Sequential`, whose first child is the stem,
    whose last is the classifier and whose others are the blocks; any net with lists of blocks that run one by one
    (see `mlaan.models.listing`).

    Args:
        image_shape: (C, H, W) of the images. With it, the blocks of the last three kinds get a stage for each run of
            blocks whose outputs have one shape, and the net's own forward must give the logits that its stem, blocks
            and classifier give. A net on the meta device has no logits to compare.

    Raises:
        UserError: blocks that cannot be listed; a forward that does something else; images that do not fit.
    """
    view = _view(model, image_shape)
    if image_shape is not None:
        require_same_logits(view, image_shape)
    return view


def _view(model: Backbone | nn.Module, image_shape: Sequence[int] | None) -> Backbone:
    if isinstance(model, Backbone):
        return model
    for family, view in _FAMILIES:
        if isinstance(model, family):
            return view(cast(Any, model))
    kind = type(model).__name__
    if all(hasattr(model, part) for part in ("stem", "blocks", "classifier")):
        parts = cast(Any, model)
        view = Backbone(model, parts.stem, list(parts.blocks), parts.classifier)
    elif isinstance(model, nn.Sequential):
        if len(model) < 3:
            raise UserError(f"model = {kind} of {len(model)} parts: it needs a stem, blocks and a classifier")
        stem, *blocks, classifier = model
        view = Backbone(model, stem, blocks, classifier)
    else:
        try:
            view = list_blocks(model)
        except UserError as error:
            reason = str(error).partition("\n")[0]
            raise UserError(
                f"model = {kind} does not say what its blocks are ({reason}): pass "
                "mlaan.Backbone(net, stem, blocks, classifier), or give it attributes of these three names"
            ) from error
        if image_shape is not None:
            view = channels_first(view, view.block_shapes(image_shape), image_shape)
    return view if image_shape is None else _staged(view, image_shape)


def _staged(view: Backbone, image_shape: Sequence[int]) -> Backbone:
    shapes = view.block_shapes(image_shape)
    runs = (len(list(run)) for _, run in groupby(shapes))
    stages = [stage for stage, length in enumerate(runs, start=1) for _ in range(length)]
    blocks = [block.module for block in view.blocks]
    return Backbone(view.net, view.stem, blocks, view.classifier, stages=stages, name=view.name)


@torch.no_grad()
def require_same_logits(view: Backbone, image_shape: Sequence[int]) -> None:
    """Compares the net's own forward with its view's on random images of `image_shape`, in both modes.

    Weights, statistics, modes and torch's random numbers are afterwards what they were. Nothing is compared on the
    meta device.

    Raises:
        UserError: they differ, or the net takes no such images.
    """
    view.block_shapes(image_shape)
    example = next(view.net.parameters())
    if example.is_meta:
        return
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, *image_shape, generator=generator).to(example)
    parts = (view.net, *_parts(view))
    modes = {module: module.training for part in parts for module in part.modules()}
    last = view.last_layer.weight
    saved = {p: p.clone() for p in view.net.parameters() if p is last or p.numel() == max(p.shape, default=1)}
    buffers = {buffer: buffer.clone() for buffer in view.net.buffers()}
    try:
        # Many nets start with a last layer of zeros, or scales near zero for their blocks, and hide what lies before.
        for p in saved:
            p.copy_(torch.rand(p.shape, generator=generator) / 2 + 0.5)
        last.copy_(torch.randn(last.shape, generator=generator) / last[0].numel() ** 0.5)
        for training in (False, True):
            for part in parts:
                part.train(training)
            theirs, ours = (_from_the_same_state(net, images, buffers) for net in (view.net, view))
            _require_same(view, theirs, ours, "training" if training else "evaluation")
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"model = {view.name} fails on {tuple(images.shape)} images, {type(error).__name__}: {error}"
        ) from error
    finally:
        for tensor, value in (saved | buffers).items():
            tensor.copy_(value)
        for module, training in modes.items():
            module.training = training


def _from_the_same_state(
    net: Callable[[torch.Tensor], Any], images: torch.Tensor, buffers: Mapping[torch.Tensor, torch.Tensor]
) -> Any:
    """What `net` gives for the images, with the same random numbers and buffers at each call."""
    for buffer, value in buffers.items():
        buffer.copy_(value)
    with torch.random.fork_rng([images.device] if images.is_cuda else []):  # puts back what the call has drawn
        return net(images.clone())


def _require_same(view: Backbone, theirs: Any, ours: torch.Tensor, mode: str) -> None:
    if not isinstance(theirs, torch.Tensor) or theirs.shape != ours.shape:
        raise UserError(
            f"model = {view.name} returns something else than logits in {mode} mode: let its forward return them alone"
        )
    close = _TOLERANCE * max(1e-30, theirs.nan_to_num().abs().max().item())
    if not torch.allclose(theirs, ours, rtol=0, atol=close, equal_nan=True):
        raise UserError(
            f"model = {view.name} computes other logits in {mode} mode than its stem, blocks and classifier do one "
            "after the other: list what is missing as a part of these, or take it out of forward"
        )


def _parts(view: Backbone) -> Iterator[nn.Module]:
    yield from (view.stem, *(block.module for block in view.blocks), view.classifier)
