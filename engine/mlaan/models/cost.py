"""What one pass through a piece of network costs: floating-point operations and bytes kept for the backward."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from mlaan.models.meta import borrowed, on_meta
from mlaan_kernels.blocks import FusedBlock, Settings, make_chain


@dataclass(frozen=True)
class ModuleCost:
    """Cost of a module on one batch.

    Attributes:
        forward_flops: multiply and add counted as two.
        input_flops: the part of the backward that carries the cotangent to the module's input.
        weight_flops: a backward that gives all weight gradients and no gradient of the input.
        backward_flops: an ordinary backward that gives both.
        saved_bytes: tensors that autograd keeps for the backward, each storage once; neither weights nor the
            module's own input and output are counted, because the neighbours hold these too.
        output_shape: with the batch dimension.
        output_bytes: size of the output.
        parameters: number of trainable weights.
    """

    forward_flops: int
    input_flops: int
    weight_flops: int
    backward_flops: int
    saved_bytes: int
    output_shape: tuple[int, ...]
    output_bytes: int
    parameters: int


def measure(
    module: nn.Module,
    input_shape: Sequence[int],
    dtype: torch.dtype = torch.float32,
    settings: Settings | None = None,
) -> ModuleCost:
    """Cost of `module` on an input of `input_shape` (batch first), counted on the meta device without arithmetic.

    Args:
        settings: if given, count the bytes that its fused form keeps, where it has one.

    Raises:
        RuntimeError: the module does not take such an input.
    """
    module = on_meta(module)
    nn.ModuleList([module, *borrowed(module)]).to(dtype)
    x = torch.empty(tuple(input_shape), device="meta", dtype=dtype, requires_grad=True)
    weights = [p for p in module.parameters() if p.requires_grad]
    with _counter() as forward:
        y, saved = _run(module, x)
    if settings is not None:
        here = replace(settings, implementation="reference", dtype=dtype)
        if make_chain(module, here) is not None:
            saved = _run(FusedBlock(on_meta(module), here), x)[1]
    cotangent = torch.empty_like(y)

    def flops(targets: list[Tensor]) -> int:
        if not targets or not y.requires_grad:
            return 0
        with _counter() as counter:
            torch.autograd.grad(y, targets, cotangent, retain_graph=True, allow_unused=True)
        return counter.get_total_flops()

    return ModuleCost(
        forward.get_total_flops(),
        flops([x]),
        flops([*weights]),
        flops([x, *weights]),
        saved,
        tuple(y.shape),
        y.numel() * y.element_size(),
        sum(p.numel() for p in weights),
    )


def convolution_backward_flops(
    cotangent: Sequence[int], x: Sequence[int], weight: Sequence[int], *others: Any, out_shape: Any = None
) -> int:
    """Of aten.convolution_backward, from shapes: each of the two gradients costs what the forward does.

    torch's own count takes a grouped convolution's weight gradient for one of all channels with all.
    """
    transposed, asked = others[4], others[7]
    once = 2 * math.prod(x if transposed else cotangent) * math.prod(weight[1:])
    return once * (bool(asked[0]) + bool(asked[1]))


def _counter() -> FlopCounterMode:
    mapping = {torch.ops.aten.convolution_backward: convolution_backward_flops}
    return FlopCounterMode(display=False, custom_mapping=mapping)


def _run(module: nn.Module, x: Tensor) -> tuple[Tensor, int]:
    """Output, and the bytes that autograd keeps besides it, the input and the weights."""
    parts = nn.ModuleList([module, *borrowed(module)])
    own = {_storage(t) for t in [x, *parts.parameters(), *parts.buffers()]}
    saved: dict[int, int] = {}
    keep_alive: list[Tensor] = []  # so that no storage's address is used twice

    def pack(tensor: Tensor) -> Tensor:
        if _storage(tensor) not in own:
            saved[_storage(tensor)] = tensor.untyped_storage().nbytes()
            keep_alive.append(tensor)
        return tensor

    with saved_tensors_hooks(pack, lambda t: t):
        y = module(x)
    saved.pop(_storage(y), None)
    return y, sum(saved.values())


def chain(costs: Sequence[ModuleCost]) -> ModuleCost:
    """Cost of modules run one after another, each on the output of the one before."""
    trained = next((i for i, cost in enumerate(costs) if cost.parameters), len(costs))
    first = sum(cost.weight_flops for cost in costs[trained : trained + 1])
    return ModuleCost(
        sum(cost.forward_flops for cost in costs),
        sum(cost.input_flops for cost in costs),
        first + sum(cost.backward_flops for cost in costs[trained + 1 :]),
        sum(cost.backward_flops for cost in costs),
        sum(cost.saved_bytes for cost in costs) + sum(cost.output_bytes for cost in costs[:-1]),
        costs[-1].output_shape,
        costs[-1].output_bytes,
        sum(cost.parameters for cost in costs),
    )


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
