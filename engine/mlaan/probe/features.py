"""Features to probe: the outputs of blocks, averaged over pixels or tokens."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from mlaan.errors import UserError
from mlaan.models import Backbone


class Features(NamedTuple):
    """What a backbone makes of some images at several depths.

    Attributes:
        depths: for each depth (N, C) of the weights' dtype and device; C may differ from one to the next.
        labels: (N,) int64.
    """

    depths: tuple[Tensor, ...]
    labels: Tensor


@torch.no_grad()
def pooled_features(
    backbone: Backbone,
    batches: Iterable[tuple[Tensor, Tensor]],
    ends: Sequence[int],
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> Features:
    """The outputs of blocks in evaluation mode, each averaged over its pixels (N, C, H, W) or tokens (N, T, C).

    A class token counts as one of the tokens.

    Args:
        batches: images (N, C, H, W), normalised, and labels (N,), on the weights' device.
        ends: the depths, as numbers of blocks: 3 is the output of the third block.
        autocast: makes the context that stem and blocks run in; the means are of the weights' dtype in any case.

    Raises:
        UserError: no batch came, or a feature is not finite.
    """
    depths: list[list[Tensor]] = [[] for _ in ends]
    labels: list[Tensor] = []
    dtype = next(backbone.net.parameters()).dtype
    was_training = backbone.net.training
    backbone.net.eval()
    try:
        for images, batch_labels in batches:
            labels.append(batch_labels)
            with autocast():
                h = backbone.stem(images)
                for done, block in enumerate(backbone.blocks[: max(ends)], 1):
                    h = block.module(h)
                    for place, end in enumerate(ends):
                        if end == done:
                            depths[place].append(_pooled(h.to(dtype)))
    finally:
        backbone.net.train(was_training)
    if not labels:
        raise UserError("batches is empty: there is nothing to probe")
    joined = tuple(torch.cat(parts) for parts in depths)
    for end, features in zip(ends, joined, strict=True):
        if not features.isfinite().all():
            label = backbone.blocks[end - 1].label
            raise UserError(
                f"the output of block {label} of {backbone.name} is not finite: probe an earlier checkpoint"
            )
    return Features(joined, torch.cat(labels))


def _pooled(h: Tensor) -> Tensor:
    return h.mean((2, 3)) if h.ndim == 4 else h.mean(1) if h.ndim == 3 else h
