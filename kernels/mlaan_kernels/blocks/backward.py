"""The backward of a chain: one or two cotangents at once, with or without weights' gradients."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mlaan_kernels import batchnorm_act as bn
from mlaan_kernels.blocks.chain import Chain, Kept, Layer, Saved
from mlaan_kernels.blocks.convolution import Grads, add_grads, spread
from mlaan_kernels.blocks.cotangent import Cotangent
from mlaan_kernels.choice import Implementation
from mlaan_kernels.norm import Norm


@torch.no_grad()
def backward(
    chain: Chain, saved: Saved, cotangents: Sequence[Cotangent], need_input: Sequence[bool], need_weight: bool
) -> tuple[list[Cotangent | None], Grads]:
    """Carry one or two cotangents through a chain in one read of what was saved.

    They are stacked along the batch from the first kernel on; `saved` stays as it is.

    Args:
        need_input: for each cotangent, whether the one at x is wanted.
        need_weight: whether the weights' gradients are, for the first cotangent.

    Returns:
        For each cotangent the one at x or None, and the gradients of the trained weights.
    """
    return _Backward(chain, saved, need_weight).run(cotangents, need_input)


class _Backward:
    """One backward pass."""

    def __init__(self, chain: Chain, saved: Saved, need_weight: bool) -> None:
        self.chain, self.saved, self.need_weight = chain, saved, need_weight
        self.implementation: Implementation = chain.settings.implementation
        self.images = saved.x.shape[0]
        self.grads: Grads = {}

    def run(self, cotangents: Sequence[Cotangent], need_input: Sequence[bool]) -> tuple[list[Cotangent | None], Grads]:
        """See `backward`."""
        chain, layers, shortcut = self.chain, self.saved.layers, self.saved.shortcut
        if chain.pool is not None:
            cotangents = self._through_pool(cotangents, chain.pool)
        residual, residual_norm = (shortcut.c, shortcut.norm) if shortcut else (None, None)
        if chain.shortcut == "identity":
            residual = self.saved.x
        sums, incoming = bn.reduce(
            [cotangent.dense for cotangent in cotangents],
            [cotangent.pooled for cotangent in cotangents],
            layers[-1].c,
            layers[-1].norm,
            residual=residual,
            residual_norm=residual_norm,
            members=chain.members,
            width=chain.width,
            implementation=self.implementation,
        )
        sums_of_shortcut = sums[:, :, ::2] if shortcut else sums
        dz, sums, masked = incoming, sums[:, :, :2], True
        for i in reversed(range(1, len(layers))):
            dc = self._through_norm(chain.layers[i], layers[i], dz, sums, masked, keep=dz is incoming)
            self._weights(i, dc)
            dz, sums, masked = self._to_layer(i - 1, dc)
        dc = self._through_norm(chain.layers[0], layers[0], dz, sums, masked, keep=dz is incoming)
        self._weights(0, dc)
        if shortcut and isinstance(chain.shortcut, Layer):
            incoming = self._through_norm(chain.shortcut, shortcut, incoming, sums_of_shortcut, True, keep=False)
            self._convolution_weights(chain.shortcut, incoming, self.saved.x, None)
        return self._inputs(dc, incoming, need_input), self.grads

    def _through_norm(self, layer: Layer, kept: Kept, dz: Tensor, sums: Tensor, masked: bool, *, keep: bool) -> Tensor:
        """Gradient of the convolution's output, over dz unless it is to be kept; gradients of weight and bias."""
        if self.need_weight:
            dbias, dweight = sums[0].sum(0)
            add_grads(self.grads, spread(dweight, [norm.weight for norm in layer.norms]))
            add_grads(self.grads, spread(dbias, [norm.bias for norm in layer.norms]))
        return bn.input_grad(
            *(dz, kept.c, kept.norm, sums if kept.of_batch else None),
            relu=not masked,
            inplace=not (keep and self.chain.shortcut is not None),
            implementation=self.implementation,
        )

    def _weights(self, i: int, dc: Tensor) -> None:
        """Gradients of the i-th convolution's weights; its input is rebuilt where it was not kept."""
        layer = self.chain.layers[i]
        if i == 0:
            return self._convolution_weights(layer, dc, self.saved.x, None)
        before = self.saved.layers[i - 1]
        if layer.conv.pointwise:
            return self._convolution_weights(layer, dc, before.c, before.norm)
        if not self.need_weight or not layer.conv.trained:
            return None
        x = before.activation
        if x is None:
            x, _ = bn.normalise(before.c, before.norm, implementation=self.implementation)
        return self._convolution_weights(layer, dc, x, None)

    def _convolution_weights(self, layer: Layer, dc: Tensor, x: Tensor, norm: Norm | None) -> None:
        if self.need_weight and layer.conv.trained:
            add_grads(self.grads, layer.conv.weight_grads(dc[: self.images], x, norm, self.implementation))

    def _to_layer(self, i: int, dc: Tensor) -> tuple[Tensor, Tensor, bool]:
        """From the next convolution's output to before the i-th layer's ReLU: dz, its sums, whether it is masked."""
        conv, kept = self.chain.layers[i + 1].conv, self.saved.layers[i]
        if conv.pointwise:
            return *conv.masked_input_grad(dc, kept.c, kept.norm, self.implementation), True
        da = conv.input_grad(dc, kept.c.shape[1:], self.implementation)
        parts = da.split(self.images)
        sums, _ = bn.reduce(
            parts, [None] * len(parts), kept.c, kept.norm, write=False, implementation=self.implementation
        )
        return da, sums, False

    def _inputs(self, dc: Tensor, incoming: Tensor, need_input: Sequence[bool]) -> list[Cotangent | None]:
        """Cotangents at the chain's input."""
        wanted = [g for g, need in enumerate(need_input) if need]
        if not wanted:
            return [None] * len(need_input)
        part = slice(wanted[0] * self.images, (wanted[-1] + 1) * self.images)
        dc, incoming = dc[part], incoming[part]
        if len(wanted) < len(need_input):  # a copy, so that what goes on does not hold the memory of both
            incoming = incoming.clone(memory_format=torch.channels_last)
        chain, first = self.chain, self.chain.layers[0].conv
        if chain.shortcut == "identity":
            if chain.members > 1:  # each member passed on the input that they share
                runs = incoming.unflatten(1, (-1, chain.members, chain.width))
                incoming = runs.sum(2).flatten(1, 2)
            dx = first.input_grad_onto(dc, incoming, self.implementation)
        else:
            dx = first.input_grad(dc, self.saved.x.shape[1:], self.implementation)
            if isinstance(chain.shortcut, Layer):
                dx = chain.shortcut.conv.input_grad_onto(incoming, dx, self.implementation)
        parts = iter(dx.split(self.images))
        return [Cotangent(dense=next(parts)) if need else None for need in need_input]

    def _through_pool(self, cotangents: Sequence[Cotangent], pool: nn.MaxPool2d) -> list[Cotangent]:
        """Dense cotangents before the max pool; its input is rebuilt to find the maxima again."""
        last = self.saved.layers[-1]
        x, _ = bn.normalise(last.c, last.norm, implementation=self.implementation)
        size, stride, padding, dilation = map(_pair, (pool.kernel_size, pool.stride, pool.padding, pool.dilation))
        y, places = F.max_pool2d_with_indices(x, size, stride, padding, dilation, pool.ceil_mode)
        run = torch.ops.aten.max_pool2d_with_indices_backward.default
        whole = (cotangent.like(y).contiguous(memory_format=torch.channels_last) for cotangent in cotangents)
        return [Cotangent(dense=run(dy, x, size, stride, padding, dilation, pool.ceil_mode, places)) for dy in whole]


def _pair(size: Any) -> list[int]:
    return [size, size] if isinstance(size, int) else list(size)
