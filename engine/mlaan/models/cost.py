"""What one pass through a piece of network costs: floating-point operations and bytes kept for the backward."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from mlaan.models.meta import on_meta


@dataclass(frozen=True)
class ModuleCost:
    """Cost of a module on one batch.

    Attributes:
        forward_flops: multiply and add counted as two.
        input_flops: the part of the backward that carries the cotangent to the module's input.
        weight_flops: a backward that gives all weight gradients and no gradient of the input.
        saved_bytes: tensors that autograd keeps for the backward, each storage once, weights not counted.
        output_shape: with the batch dimension.
        output_bytes: size of the output.
        parameters: number of trainable weights.
    """

    forward_flops: int
    input_flops: int
    weight_flops: int
    saved_bytes: int
    output_shape: tuple[int, ...]
    output_bytes: int
    parameters: int


def measure(module: nn.Module, input_shape: Sequence[int], dtype: torch.dtype = torch.float32) -> ModuleCost:
    """Cost of `module` on an input of `input_shape` (batch first), counted on the meta device without arithmetic.

    Raises:
        RuntimeError: the module does not take such an input.
    """
    module = on_meta(module).to(dtype)
    x = torch.empty(tuple(input_shape), device="meta", dtype=dtype, requires_grad=True)
    weights = [p for p in module.parameters() if p.requires_grad]
    own = {_storage(t) for t in [*module.parameters(), *module.buffers()]}
    saved: dict[int, int] = {}
    keep_alive: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        if _storage(tensor) not in own:
            saved[_storage(tensor)] = tensor.untyped_storage().nbytes()
            keep_alive.append(tensor)
        return tensor

    with FlopCounterMode(display=False) as forward, saved_tensors_hooks(pack, lambda t: t):
        y = module(x)
    cotangent = torch.empty_like(y)
    with FlopCounterMode(display=False) as to_input:
        torch.autograd.grad(y, [x], cotangent, retain_graph=True, allow_unused=True)
    to_weights = 0
    if weights:
        with FlopCounterMode(display=False) as counter:
            torch.autograd.grad(y, weights, cotangent, allow_unused=True)
        to_weights = counter.get_total_flops()
    return ModuleCost(
        forward.get_total_flops(),
        to_input.get_total_flops(),
        to_weights,
        sum(saved.values()),
        tuple(y.shape),
        y.numel() * y.element_size(),
        sum(p.numel() for p in weights),
    )


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
