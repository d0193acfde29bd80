"""Costs of modules, counted on the meta device; each structure is run once and remembered."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from mlaan.models.cost import PASSES, Device, ModuleCost, add_bytes, shape_bytes
from mlaan.models.meta import borrowed, on_meta
from mlaan.models.meter import merged
from mlaan.models.passes import Autograd, ByHand
from mlaan_kernels.blocks import Settings, make_chain
from mlaan_kernels.choice import Implementation, triton_obstacle

_MEASURED: dict[Hashable, Any] = {}
_MOST_MEASURED = 4096
_GIVE_WEIGHTS = ("weights", "both", "joint", "joint_end")
T = TypeVar("T")


def measure(
    module: nn.Module,
    input_shape: Sequence[int],
    dtype: torch.dtype = torch.float32,
    settings: Settings | None = None,
    device: Device = "cuda",
    *,
    channels_last: bool = False,
) -> ModuleCost:
    """Cost of `module` on an input of `input_shape` (batch first), counted on the meta device without arithmetic.

    A module of a structure that was measured before is not run again.

    Args:
        dtype: of activations; weights, gradients and buffers count in their own.
        settings: if given, count what its fused form keeps and takes by its reference operators, where it has one.
            FLOPs stay those of the plain form, whose operators between two matrix products then count as one.
        device: "cpu" adds what oneDNN's convolutions take while they run.
        channels_last: the layout in which the fused form gets its input; Triton's always has it so.

    Raises:
        RuntimeError: the module does not take such an input.
    """
    here = None if settings is None else replace(settings, implementation=_form(dtype, device), dtype=dtype)
    channels_last = channels_last or (here is not None and here.implementation == "triton")
    fused = None if here is None else (here.keep_activations, channels_last)
    key = structure(module)
    place = None if key is None else (key, tuple(input_shape), dtype, fused, device)
    return remembered(place, lambda: _measure(module, tuple(input_shape), dtype, here, device, channels_last))


def _form(dtype: torch.dtype, device: Device) -> Implementation:
    """Of the operators that run for shapes alone: Triton's where the plan is for a GPU and they can."""
    able = device == "cuda" and triton_obstacle(torch.device("meta"), dtype) is None
    return "triton" if able else "reference"


def remembered(place: Hashable | None, make: Callable[[], T]) -> T:
    """What `make` gave the first time that it was asked for this place; None is no place."""
    if place is None:
        return make()
    if place not in _MEASURED:
        found = make()
        if len(_MEASURED) >= _MOST_MEASURED:
            _MEASURED.clear()
        _MEASURED[place] = found
    return _MEASURED[place]


def structure(module: nn.Module) -> Hashable | None:
    """What tells modules of different costs apart: types, plain attributes, shapes; None where that is not known."""
    seen: list[Hashable] = []
    for name, part in nn.ModuleList([module, *borrowed(module)]).named_modules():
        if part._forward_hooks or part._forward_pre_hooks or part._backward_hooks or "forward" in vars(part):
            return None
        tensors = (*part.named_parameters(recurse=False), *part.named_buffers(recurse=False))
        plain = []
        for key, value in vars(part).items():
            if not key.startswith("_") and key != "borrowed":
                if not _is_plain(value):
                    return None
                plain.append((key, value))
        seen.append((name, type(part), tuple(plain)))
        seen += [(key, t.shape, t.dtype, t.requires_grad, t.stride()) for key, t in tensors]
    return tuple(seen)


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_plain, value))
    return value is None or callable(value) or isinstance(value, (bool, int, float, str, torch.dtype))


def _measure(
    module: nn.Module,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    settings: Settings | None,
    device: Device,
    channels_last: bool,
) -> ModuleCost:
    own = [p for p in module.parameters() if p.requires_grad]
    sizes = [sum(map(_size, some)) for some in (module.parameters(), own, module.buffers())]
    casts, wider = autocast_bytes(module, dtype)
    module = on_meta(module)
    nn.ModuleList([module, *borrowed(module)]).to(dtype)
    lean = Autograd(module, shape, dtype, device)
    passes = lean.passes()
    passes["forward"] = add_bytes(passes["forward"], casts, 0)
    passes["kept"] = add_bytes(passes["kept"], casts, casts)
    saved = passes["kept"].end_bytes - lean.output_bytes
    chain = None if settings is None else make_chain(module, settings)
    if chain is not None:
        if settings is not None and settings.implementation == "triton":  # the engine lays weights out so for it
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        hand = ByHand(chain, shape, dtype, device, channels_last=channels_last)
        by_hand, channels_last = hand.passes(), hand.gives_channels_last
        saved = by_hand["kept"].end_bytes - lean.output_bytes
        if settings is not None and settings.implementation == "reference":
            by_hand = {name: replace(by_hand[name], operators=merged(passes[name].operators)) for name in PASSES}
        passes = by_hand
    else:
        passes["propagated"] = add_bytes(passes["propagated"], 0, -casts)
    kept = 0 if chain is not None else casts
    # a gradient is there in both dtypes for a moment, so that the peak does not fall with the copies that go
    passes |= {name: add_bytes(passes[name], wider, wider - kept) for name in _GIVE_WEIGHTS}
    input_bytes = shape_bytes(shape, dtype)
    return ModuleCost(
        **passes,
        saved_bytes=saved,
        input_bytes=input_bytes,
        output_shape=lean.output_shape,
        output_bytes=lean.output_bytes,
        parameters=sum(p.numel() for p in own),
        weight_bytes=sizes[0],
        gradient_bytes=sizes[1],
        buffer_bytes=sizes[2],
        fused=chain is not None,
        keeps_output=chain is None,
        channels_last=chain is not None and channels_last,
    )


def autocast_bytes(module: nn.Module, dtype: torch.dtype) -> tuple[int, int]:
    """What autocast to `dtype` adds: copies of matrices, which are kept for the backward; and what gradients in the
    weights' own dtype take beyond those in `dtype`.
    """
    casts = [p for p in module.parameters() if p.dtype != dtype and p.ndim > 1]
    wider = sum((p.element_size() - dtype.itemsize) * p.numel() for p in module.parameters() if p.requires_grad)
    return dtype.itemsize * sum(p.numel() for p in casts), wider


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
