"""Convolution - BatchNorm - ReLU chains with a shortcut round them, forward and backward by hand.

Every residual block is such a chain, and so is a stem. It keeps the convolutions' outputs and what came in and out;
normalised values and masks are rebuilt where they are used, in the kernels where possible. Blocks alike can run as one
chain of as many times the channels: a leap block beside its twin, and the leap networks of several modules.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.amp.autocast_mode import is_autocast_available
from torch.nn import functional as F

from mlaan_kernels import batchnorm_act as bn
from mlaan_kernels.blocks.convolution import Convolution
from mlaan_kernels.choice import Implementation
from mlaan_kernels.norm import Norm


@dataclass
class Settings:
    """How chains compute; shared by those of one network and read at every pass.

    Attributes:
        dtype: to compute in; None: autocast's where it is on, else the input's.
        implementation: of every operator.
        keep_activations: also keep relu(norm(c)) where a convolution needs it in memory for its weights' gradient
            (memory policy "none"); else it is rebuilt from c.
    """

    dtype: torch.dtype | None = None
    implementation: Implementation = "auto"
    keep_activations: bool = False


class Layer:
    """A convolution and the BatchNorm behind it, or several alike, side by side.

    Args:
        pairs: (convolution, BatchNorm) of each.
        inputs: see Convolution.
    """

    def __init__(self, pairs: Sequence[tuple[nn.Conv2d, nn.BatchNorm2d]], inputs: int) -> None:
        self.conv = Convolution([conv for conv, _ in pairs], inputs)
        self.norms = [norm for _, norm in pairs]

    @property
    def uses_batch(self) -> bool:
        """Whether it normalises with the batch's statistics."""
        return self.norms[0].training or self.norms[0].running_mean is None


class Kept(NamedTuple):
    """What is kept of a layer: its output, its Norm, whether that came from the batch, and its activation or None."""

    c: Tensor
    norm: Norm
    of_batch: bool
    activation: Tensor | None


class Saved(NamedTuple):
    """What a chain's backward needs."""

    x: Tensor
    layers: tuple[Kept, ...]
    shortcut: Kept | None


class Chain:
    """y = maxpool(relu(norm(conv(... relu(norm(conv(x)))) + shortcut(x))); shortcut and pool are optional.

    Args:
        layers: in order.
        shortcut: None, "identity", or a layer.
        pool: what follows the last ReLU.
        settings: how to compute.
        members: blocks that share an input and whose outputs are added: of each layer's channels that many runs make
            one of y's.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        shortcut: Layer | str | None,
        pool: nn.MaxPool2d | None,
        settings: Settings,
        members: int = 1,
    ) -> None:
        self.layers, self.shortcut, self.pool = tuple(layers), shortcut, pool
        self.settings, self.members = settings, members
        self.width = layers[-1].conv.layers[0].out_channels
        """Channels of one block's output."""

    @torch.no_grad()
    def forward(
        self, x: Tensor, keep: bool, pool: bool = False, *, write: bool = True, slices: int = 1
    ) -> tuple[Tensor, Saved | None, Tensor | None]:
        """Output, what the backward needs if `keep`, and the output's mean over the pixels (N, C) if `pool`.

        Args:
            x: (N, C, H, W).
            write: False: the mean is all that is wanted of the output, which is empty then.
            slices: parts of the batch with batch statistics of their own.
        """
        implementation = self.settings.implementation
        x = x.detach().to(self._dtype(x))
        kept: list[Kept] = []
        for i, layer in enumerate(self.layers):
            before = kept[i - 1] if i else None
            c, norm = self._layer(layer, x, before, slices)
            activation = None
            if i + 1 < len(self.layers) and not self.layers[i + 1].conv.pointwise:
                activation, _ = bn.normalise(c, norm, implementation=implementation)
            kept.append(Kept(c, norm, layer.uses_batch, activation))
            if before is not None and not self.settings.keep_activations:
                kept[i - 1] = before._replace(activation=None)
        shortcut = None
        if isinstance(self.shortcut, Layer):
            c, norm = self._layer(self.shortcut, x, None, slices)
            shortcut = Kept(c, norm, self.shortcut.uses_batch, None)
        residual, residual_norm = (shortcut.c, shortcut.norm) if shortcut else (x if self.shortcut else None, None)
        y, pooled = bn.normalise(
            *(kept[-1].c, kept[-1].norm, residual, residual_norm),
            write=write or self.pool is not None,
            pool=pool and self.pool is None,
            members=self.members,
            width=self.width,
            implementation=implementation,
        )
        if self.pool is not None:
            y = _max_pool(y, self.pool)
            pooled = y.mean((2, 3)) if pool else None
        return y, Saved(x, tuple(kept), shortcut) if keep else None, pooled

    def _layer(self, layer: Layer, x: Tensor, before: Kept | None, slices: int) -> tuple[Tensor, Norm]:
        """Convolution of x, or of what the layer before leaves, and its Norm."""
        implementation = self.settings.implementation
        norm = None
        if before is not None:
            x, norm = (before.c, before.norm) if before.activation is None else (before.activation, None)
        c, partials = layer.conv.forward(
            x, norm, statistics=layer.uses_batch, slices=slices, implementation=implementation
        )
        source = c if partials is None else partials
        return c, bn.batch_norm(layer.norms, source, slices=slices, implementation=implementation)

    def _dtype(self, x: Tensor) -> torch.dtype:
        if self.settings.dtype is not None:
            return self.settings.dtype
        device = x.device.type
        if x.dtype == torch.float32 and is_autocast_available(device) and torch.is_autocast_enabled(device):
            return torch.get_autocast_dtype(device)
        return x.dtype


def _max_pool(x: Tensor, pool: nn.MaxPool2d) -> Tensor:
    return F.max_pool2d(x, pool.kernel_size, pool.stride, pool.padding, pool.dilation, pool.ceil_mode)
