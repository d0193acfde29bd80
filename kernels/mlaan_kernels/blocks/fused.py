"""Fused twins of plain blocks: the same weights under the same names, for autograd."""

import warnings
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils import _pytree as pytree
from torchvision.models.resnet import BasicBlock, Bottleneck

from mlaan_kernels.blocks.backward import backward
from mlaan_kernels.blocks.chain import Chain, Settings
from mlaan_kernels.blocks.cotangent import Cotangent
from mlaan_kernels.blocks.matching import make_chain


class FusedBlock(nn.Module):
    """A block that runs as a chain under autograd; its children, and so its weights' names, are the plain block's.

    Args:
        block: the plain block, whose very weights these are.

    Raises:
        ValueError: it is no such block as `make_chain` knows.
    """

    def __init__(self, block: nn.Module, settings: Settings | None = None) -> None:
        super().__init__()
        chain = make_chain(block, settings or Settings())
        if chain is None:
            raise ValueError(f"{type(block).__name__} has no fused form: leave it as it is")
        for name, child in block.named_children():
            self.add_module(name, child)
        self.training = block.training  # and no child's: a BatchNorm in evaluation mode stays so
        self.chain = chain

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C', H', W')."""
        weights = [weight for weight in self.parameters() if weight.requires_grad]
        if torch.is_grad_enabled() and (x.requires_grad or weights):
            return _Carried.apply(x, self.chain, *weights)
        return self.chain.forward(x, keep=False)[0]


class FusedBottleneck(FusedBlock):
    """torchvision's Bottleneck, fused."""


class FusedBasicBlock(FusedBlock):
    """torchvision's BasicBlock, fused."""


class FusedSequence(FusedBlock):
    """nn.Sequential of convolution, BatchNorm, ReLU and perhaps a max pool, fused: a stem."""


_TWINS = {Bottleneck: FusedBottleneck, BasicBlock: FusedBasicBlock, nn.Sequential: FusedSequence}


def fuse(net: nn.Module, settings: Settings | None = None) -> nn.Module:
    """`net` with every block that can be fused replaced by its twin, in place; state dicts keep their names.

    Fused are torchvision's Bottleneck and BasicBlock, and nn.Sequential of Conv2d, BatchNorm2d, ReLU and perhaps
    MaxPool2d (`make_chain`). A ResNet's stem is no module of its own and stays as it is. On a CPU PyTorch does the
    work: it takes more time, and keeps less for the backward.

    Returns:
        net, or its twin where net itself is such a block. Where nothing could be fused, a RuntimeWarning says so.
    """
    fused = _fuse(net, settings or Settings())
    if not any(isinstance(part, FusedBlock) for part in fused.modules()):
        warnings.warn(
            f"nothing in {type(net).__name__} has a fused form: it is as it was", RuntimeWarning, stacklevel=2
        )
    return fused


def _fuse(net: nn.Module, settings: Settings) -> nn.Module:
    if isinstance(net, FusedBlock):
        return net
    if make_chain(net, settings) is not None:
        return _TWINS[cast(Any, type(net))](net, settings)
    for name, child in list(net.named_children()):
        setattr(net, name, _fuse(child, settings))
    return net


class _Carried(torch.autograd.Function):
    """A chain's passes as autograd sees them; what is kept goes through saved-tensor hooks like any other's."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, chain: Chain, *weights: nn.Parameter) -> Tensor:
        y, saved, _ = chain.forward(x, keep=True)
        leaves, ctx.structure = pytree.tree_flatten(saved)
        ctx.places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        ctx.leaves = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        # the weights, too: one that is changed before the backward is then found out
        ctx.save_for_backward(*(leaves[i] for i in ctx.places), *weights)
        ctx.chain, ctx.weights, ctx.dtype = chain, weights, x.dtype
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        leaves = list(ctx.leaves)
        for place, tensor in zip(ctx.places, ctx.saved_tensors, strict=False):
            leaves[place] = tensor
        saved = pytree.tree_unflatten(leaves, ctx.structure)
        need_input, _, *need_weights = ctx.needs_input_grad
        inputs, grads = backward(ctx.chain, saved, [Cotangent(dense=cotangents[0])], [need_input], any(need_weights))
        dx = inputs[0].dense if inputs[0] is not None else None
        return None if dx is None else dx.to(ctx.dtype), None, *(grads.get(weight) for weight in ctx.weights)
