"""A convolution as chains of fused layers run it: 1x1 by this package's matrix kernels, others as PyTorch has them."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mlaan_kernels.choice import Implementation
from mlaan_kernels.conv1x1 import conv1x1_forward, conv1x1_input_grad, conv1x1_weight_grad
from mlaan_kernels.norm import Norm, Partials

Grads = dict[nn.Parameter, Tensor]
_backward = torch.ops.aten.convolution_backward.default


class Convolution:
    """The passes of one nn.Conv2d, or of several alike as one convolution of as many times the channels.

    Args:
        layers: they own the weights. Their output channels lie side by side.
        inputs: how many inputs lie side by side in x; the layers are as many runs of equal length, each on its input.
            Only layers without groups of their own can share an input.

    Attributes:
        pointwise: it reads single pixels, so that the BatchNorm and ReLU before it can be its prologue and are never
            written to memory.
    """

    def __init__(self, layers: Sequence[nn.Conv2d], inputs: int) -> None:
        self.layers, self.inputs, one = tuple(layers), inputs, layers[0]
        self.groups = inputs if one.groups == 1 else len(layers) * one.groups
        self.stride, self.padding, self.dilation = one.stride, one.padding, one.dilation
        square = one.kernel_size == (1, 1) and one.stride in ((1, 1), (2, 2))
        self.pointwise = square and one.padding == (0, 0) and one.bias is None

    @property
    def trained(self) -> bool:
        """Whether any of the weights is."""
        return any(map(_is_trained, self.layers))

    def forward(
        self, x: Tensor, norm: Norm | None, *, statistics: bool, slices: int, implementation: Implementation
    ) -> tuple[Tensor, Partials | None]:
        """Output and, if `statistics` and the kernel gives them, its partial sums.

        Args:
            x: the input itself, in the dtype to compute in; with `norm`, which is for pointwise ones, what relu and
                `norm` make the input of.
        """
        weight = self._weight(x.dtype)
        if not self.pointwise:
            biases = [one.detach() for one in self._biases()]
            bias = torch.cat(biases).to(x.dtype) if biases else None
            return F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups), None
        return conv1x1_forward(
            *(x, weight, norm),
            stride=self.stride[0],
            groups=self.groups,
            statistics=statistics,
            slices=slices,
            implementation=implementation,
        )

    def input_grad(self, dc: Tensor, shape: Sequence[int], implementation: Implementation) -> Tensor:
        """Gradient of the input, for which `shape` is (C, H, W)."""
        whole = torch.Size((dc.shape[0], *shape))
        if not self.pointwise:
            found = self._run_backward(dc, dc.new_empty(1).expand(whole), (True, False, False))[0]
            assert found is not None
            return found
        return conv1x1_input_grad(
            *(dc, self._weight(dc.dtype), whole, None, None),
            stride=self.stride[0],
            groups=self.groups,
            implementation=implementation,
        )[0]

    def input_grad_onto(self, dc: Tensor, onto: Tensor, implementation: Implementation) -> Tensor:
        """`onto` with the gradient of the input added, in place where it is channels_last."""
        onto = onto.contiguous(memory_format=torch.channels_last)
        if not self.pointwise:
            return onto.add_(self.input_grad(dc, onto.shape[1:], implementation))
        return conv1x1_input_grad(
            *(dc, self._weight(dc.dtype), onto.shape, None, None),
            stride=self.stride[0],
            groups=self.groups,
            add=onto,
            implementation=implementation,
        )[0]

    def masked_input_grad(
        self, dc: Tensor, c: Tensor, norm: Norm, implementation: Implementation
    ) -> tuple[Tensor, Tensor]:
        """Pointwise: gradient at c, before relu(norm(c)) became the input, and the sums that norm's backward needs."""
        dz, sums = conv1x1_input_grad(
            *(dc, self._weight(dc.dtype), c.shape, c, norm),
            stride=self.stride[0],
            groups=self.groups,
            implementation=implementation,
        )
        assert sums is not None
        return dz, sums

    def weight_grads(self, dc: Tensor, x: Tensor, norm: Norm | None, implementation: Implementation) -> Grads:
        """Gradients of the trained weights and biases; x and `norm` as in `forward`."""
        count, trained = len(self.layers), [i for i, layer in enumerate(self.layers) if _is_trained(layer)]
        if len(trained) < count:
            own = self.inputs == count
            few = Convolution([self.layers[i] for i in trained], len(trained) if own else self.inputs)
            if own:
                x = pick(x, count, trained)
                norm = None if norm is None else Norm(*(pick(numbers, count, trained) for numbers in norm))
            return few.weight_grads(pick(dc, count, trained), x, norm, implementation)
        weights = [cast(nn.Parameter, layer.weight) for layer in self.layers]
        if self.pointwise:
            grad = conv1x1_weight_grad(
                *(dc, x, norm), stride=self.stride[0], groups=self.groups, implementation=implementation
            )
            return spread(grad, weights)
        biases = self._biases()
        asked = (False, *(any(one.requires_grad for one in some) for some in (weights, biases)))
        _, weight, bias = self._run_backward(dc, x, (asked[0], asked[1], asked[2]))
        return add_grads(spread(weight, weights), spread(bias, biases))

    def _weight(self, dtype: torch.dtype) -> Tensor:
        weights = [layer.weight.detach() for layer in self.layers]
        return (weights[0] if len(weights) == 1 else torch.cat(weights)).to(dtype)

    def _biases(self) -> list[nn.Parameter]:
        return [cast(nn.Parameter, layer.bias) for layer in self.layers if layer.bias is not None]

    def _run_backward(self, dc: Tensor, x: Tensor, mask: tuple[bool, bool, bool]) -> tuple[Tensor | None, ...]:
        sizes = [dc.shape[1]] if mask[2] else None
        geometry = (self.stride, self.padding, self.dilation, False, (0, 0), self.groups)
        return _backward(dc, x, self._weight(dc.dtype), sizes, *geometry, mask)


def spread(grad: Tensor | None, weights: Sequence[nn.Parameter]) -> Grads:
    """Parts of a joined gradient, side by side along its first dimension, for those weights that are trained."""
    grads: Grads = {}
    if grad is not None:
        for weight, part in zip(weights, grad.chunk(len(weights)), strict=True):
            if weight.requires_grad:
                add_grads(grads, {weight: part.to(weight.dtype)})
    return grads


def add_grads(grads: Grads, more: Grads) -> Grads:
    """`grads` with `more` added: a weight that layers share gets the sum."""
    for weight, grad in more.items():
        grads[weight] = grads[weight] + grad if weight in grads else grad
    return grads


def _is_trained(layer: nn.Module) -> bool:
    return any(weight.requires_grad for weight in layer.parameters())


def pick(x: Tensor, count: int, places: Sequence[int]) -> Tensor:
    """Some of `count` equal runs of channels that lie side by side; channels are the last dimension of numbers."""
    dim = 1 if x.ndim > 1 else 0
    runs = x.chunk(count, dim)
    return torch.cat([runs[place] for place in places], dim)  # no index tensor: it would wait for the device
