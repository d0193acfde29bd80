"""What one pass through a piece of network costs: operations, bytes moved, and memory while it runs and after it.

Parts are run on the meta device, where nothing is computed, once each way that a step may run them.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from mlaan.models.meta import borrowed, on_meta
from mlaan.models.meter import Meter, Operator, merged, onednn_scratch, storage_key
from mlaan_kernels.blocks import Chain, Cotangent, Settings, backward, make_chain
from mlaan_kernels.choice import Implementation, triton_obstacle

Device = Literal["cpu", "cuda"]
_MEASURED: dict[Hashable, Any] = {}
_MOST_MEASURED = 4096
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Pass:
    """One way through a part or a module.

    Attributes:
        peak_bytes: most that is alive above the start, when what comes in is there already.
        end_bytes: alive at the end above the start; below 0 where a backward lets go of more than it makes.
        outer_peak_bytes, outer_end_bytes: the same of a backward whose caller holds on to the output and to the
            cotangent there; for a forward the same figures.
        operators: what runs, for a pass that was measured.
        parts: the passes that it is made of, for one that was put together.
    """

    peak_bytes: int = 0
    end_bytes: int = 0
    outer_peak_bytes: int = 0
    outer_end_bytes: int = 0
    operators: tuple[Operator, ...] = ()
    parts: tuple["Pass", ...] = ()

    @cached_property
    def flops(self) -> int:
        """Multiply and add are two."""
        return sum(part.flops for part in self.parts) + sum(operator.flops for operator in self.operators)

    @cached_property
    def bytes(self) -> int:
        """Read and written."""
        return sum(part.bytes for part in self.parts) + sum(operator.bytes for operator in self.operators)


@dataclass(frozen=True, eq=False)
class ModuleCost:
    """Cost of a module on one batch.

    Attributes:
        forward, kept: the forward alone, and that which keeps what a backward needs.
        propagate, propagated: the backward that carries a cotangent to the input alone; `propagated` lets go of what
            was kept, as the next three do.
        weights: the backward that gives all weight gradients and none of the input.
        both: an ordinary backward, which gives both.
        joint: fused only: weights' gradients for one cotangent while another goes on beside it; in `joint_end`, at the
            first part, the first of them ends.
        saved_bytes: kept for the backward; neither weights nor the module's own input and output are counted, because
            the neighbours hold these too.
        input_bytes, output_bytes: sizes of input and output.
        output_shape: with the batch dimension.
        parameters: number of trainable weights.
        weight_bytes, gradient_bytes, buffer_bytes: of all weights, of the trainable ones' gradients, of the buffers.
        fused: whether any of it runs by hand-written passes.
        channels_last: whether a fused block gives its output so.
        keeps_output: whether what is kept for the backward holds the output, too.
    """

    forward: Pass
    kept: Pass
    propagate: Pass
    propagated: Pass
    weights: Pass
    both: Pass
    joint: Pass
    joint_end: Pass
    saved_bytes: int
    input_bytes: int
    output_shape: tuple[int, ...]
    output_bytes: int
    parameters: int
    weight_bytes: int
    gradient_bytes: int
    buffer_bytes: int
    fused: bool = False
    keeps_output: bool = True
    channels_last: bool = False

    @property
    def forward_flops(self) -> int:
        """Of a forward."""
        return self.forward.flops

    @property
    def input_flops(self) -> int:
        """Of the backward that carries a cotangent to the input."""
        return self.propagate.flops

    @property
    def weight_flops(self) -> int:
        """Of the backward that gives weight gradients alone."""
        return self.weights.flops

    @property
    def backward_flops(self) -> int:
        """Of an ordinary backward."""
        return self.both.flops


_SIZES = ("saved_bytes", "input_bytes", "output_bytes")
_GIVE_WEIGHTS = ("weights", "both", "joint", "joint_end")
PASSES = ("forward", "kept", "propagate", "propagated", "weights", "both", "joint", "joint_end")


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
    lean = _Autograd(module, shape, dtype, device)
    passes = lean.passes()
    passes["forward"] = add_bytes(passes["forward"], casts, 0)
    passes["kept"] = add_bytes(passes["kept"], casts, casts)
    saved = passes["kept"].end_bytes - lean.output_bytes
    chain = None if settings is None else make_chain(module, settings)
    if chain is not None:
        if settings is not None and settings.implementation == "triton":  # the engine lays weights out so for it
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        hand = _ByHand(chain, shape, dtype, device, channels_last=channels_last)
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


def add_bytes(one: Pass, peak: int, end: int) -> Pass:
    """The pass with so many bytes more at its peak and at its end."""
    return replace(
        one,
        peak_bytes=one.peak_bytes + peak,
        outer_peak_bytes=one.outer_peak_bytes + peak,
        end_bytes=one.end_bytes + end,
        outer_end_bytes=one.outer_end_bytes + end,
    )


class _Enter(torch.autograd.Function):
    """Stands behind a part: its backward hands on a cotangent that nobody else holds, and has the meter start there."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, meter: Meter) -> Tensor:
        ctx.meter, ctx.like, ctx.key = meter, (y.shape, y.dtype), storage_key(y)
        return y.new_empty(1).expand(y.shape)

    @staticmethod
    def backward(ctx: Any, *given: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        cotangent = torch.empty(ctx.like[0], dtype=ctx.like[1], device="meta")
        ctx.meter.start([storage_key(cotangent), ctx.key])
        return cotangent, None


class _Autograd:
    """The passes of a module over autograd."""

    def __init__(self, module: nn.Module, shape: tuple[int, ...], dtype: torch.dtype, device: Device) -> None:
        self.module, self.shape, self.dtype = module, shape, dtype
        self.scratch = scratch_of(device)
        self.trained = [p for p in module.parameters() if p.requires_grad]

    def passes(self) -> dict[str, Pass]:
        """All of them by name."""
        x = torch.empty(self.shape, device="meta", dtype=self.dtype, requires_grad=self.dtype.is_floating_point)
        with Meter(self.scratch) as meter, torch.no_grad():
            y = self.module(x)
            found = {"forward": read(meter)}
        self.output_shape, self.output_bytes = tuple(y.shape), shape_bytes(y.shape, y.dtype)
        del y
        with Meter(self.scratch) as meter:
            y = self.module(x)
            found["kept"] = read(meter)
        differentiable = y.requires_grad
        del y
        targets = {
            "propagate": [x],
            "propagated": [x],
            "weights": self.trained,
            "both": [x, *self.trained],
        }
        for name, wanted in targets.items():
            able = differentiable and wanted
            found[name] = self._backward(x, wanted, retain=name == "propagate") if able else Pass()
        found["joint"] = found["joint_end"] = found["both"]
        return found

    def _backward(self, x: Tensor, targets: list[Any], *, retain: bool) -> Pass:
        with Meter(self.scratch) as meter:
            y = self.module(x)
            z: Tensor = _Enter.apply(y, meter)  # type: ignore[assignment]
            cotangent = z.detach()
            del y
            grads = torch.autograd.grad(z, targets, cotangent, retain_graph=retain, allow_unused=True)
            found = read(meter)
        del grads
        return found


class _ByHand:
    """The passes of a fused block."""

    def __init__(
        self, chain: Chain, shape: tuple[int, ...], dtype: torch.dtype, device: Device, *, channels_last: bool
    ) -> None:
        self.chain, self.shape, self.dtype, self.channels_last = chain, shape, dtype, channels_last
        self.scratch = scratch_of(device)

    def passes(self) -> dict[str, Pass]:
        """All of them by name."""
        x = torch.empty(self.shape, device="meta", dtype=self.dtype)
        if self.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        with Meter(self.scratch) as meter:
            y = self.chain.forward(x, False)
            found = {"forward": read(meter)}
        del y
        with Meter(self.scratch) as meter:
            y, saved, _ = self.chain.forward(x, True)
            found["kept"] = read(meter)
        assert saved is not None
        self.gives_channels_last = not y.is_contiguous() and y.is_contiguous(memory_format=torch.channels_last)
        ways = {
            "propagate": ([True], False),
            "weights": ([False], True),
            "both": ([True], True),
            "joint": ([True, True], True),
            "joint_end": ([False, True], True),
        }
        for name, (need_input, need_weight) in ways.items():
            cotangents = [Cotangent(dense=torch.empty_like(y)) for _ in need_input]
            with Meter(self.scratch) as meter:
                results = backward(self.chain, saved, cotangents, need_input, need_weight)
                found[name] = read(meter)
            del results
        found["propagated"] = found["propagate"]
        return found


def read(meter: Meter) -> Pass:
    """What ran since the meter's start."""
    outer = meter.level + meter.gone
    return Pass(meter.peak, meter.level, meter.outer_peak, outer, tuple(meter.operators))


def chain(costs: Sequence[ModuleCost]) -> ModuleCost:
    """Cost of modules run one after another, each on the output of the one before."""
    trained = next((i for i, cost in enumerate(costs) if cost.parameters), len(costs))
    weights = [cost.both if i > trained else cost.weights if i == trained else None for i, cost in enumerate(costs)]
    inner = sum(cost.output_bytes for cost in costs[:-1])
    both_ways = [cost.joint if i else cost.joint_end for i, cost in enumerate(costs)]
    joint = _backward(costs, both_ways, keep=False, cotangents=2)

    return ModuleCost(
        forward=_forward(costs, [cost.forward for cost in costs], keep=False),
        kept=_forward(costs, [cost.kept for cost in costs], keep=True),
        propagate=_backward(costs, [cost.propagate for cost in costs], keep=True),
        propagated=_backward(costs, [cost.propagated for cost in costs], keep=False),
        weights=_backward(costs, weights, keep=False),
        both=_backward(costs, [cost.both for cost in costs], keep=False),
        joint=joint,
        joint_end=joint,
        saved_bytes=sum(cost.saved_bytes for cost in costs) + inner,
        input_bytes=costs[0].input_bytes,
        output_shape=costs[-1].output_shape,
        output_bytes=costs[-1].output_bytes,
        parameters=sum(cost.parameters for cost in costs),
        weight_bytes=sum(cost.weight_bytes for cost in costs),
        gradient_bytes=sum(cost.gradient_bytes for cost in costs),
        buffer_bytes=sum(cost.buffer_bytes for cost in costs),
        fused=any(cost.fused for cost in costs),
        keeps_output=costs[-1].keeps_output,
    )


def _forward(costs: Sequence[ModuleCost], passes: Sequence[Pass], *, keep: bool) -> Pass:
    level = peak = 0
    for i, one in enumerate(passes):
        peak = max(peak, level + one.peak_bytes)
        level += one.end_bytes
        if i and not keep:
            level -= costs[i].input_bytes
    return Pass(peak, level, peak, level, parts=tuple(passes))


def _backward(costs: Sequence[ModuleCost], passes: Sequence[Pass | None], *, keep: bool, cotangents: int = 1) -> Pass:
    """Parts from the last to the first.

    Over autograd only the caller holds what comes in at the last; inside, all goes as soon as it is used. A fused
    module's frame holds each part's cotangents and what was kept until the part is through.
    """
    level = peak = 0
    by_hand = any(cost.fused for cost in costs)
    for i in reversed(range(len(costs))):
        one, cost, last = passes[i], costs[i], i == len(costs) - 1
        if one is None:
            break
        if by_hand or last:
            peak = max(peak, level + one.outer_peak_bytes)
            level += one.outer_end_bytes
        else:
            peak = max(peak, level + one.peak_bytes)
            level += one.end_bytes
        if by_hand:
            level -= 0 if last else cotangents * cost.output_bytes
            if not keep:
                level -= (cost.saved_bytes if cost.fused else 0) + (cost.input_bytes if i else 0)
    done = tuple(one for one in reversed(passes) if one is not None)
    return Pass(peak, level, peak, level, parts=done)


def interpolate(low: ModuleCost, high: ModuleCost, low_batch: int, high_batch: int, batch: int) -> ModuleCost:
    """Cost for `batch` images out of those for two other batches, with which all figures grow in a straight line.

    Exact for ordinary networks, except that a peak may move from one operator to another.
    """
    share = (batch - low_batch) / (high_batch - low_batch)
    found: Mapping[str, Any] = {n: interpolate_pass(getattr(low, n), getattr(high, n), share) for n in PASSES}
    sizes = {n: _between(getattr(low, n), getattr(high, n), share) for n in _SIZES}
    return replace(low, **found, **sizes, output_shape=(batch, *low.output_shape[1:]))


def interpolate_pass(low: Pass, high: Pass, share: float) -> Pass:
    """The pass at `share` of the way from `low` to `high`, which are of one module; beyond 1 is further on."""

    def at(name: str) -> int:
        return _between(getattr(low, name), getattr(high, name), share)

    operators = tuple(
        Operator(_between(a.flops, b.flops, share), _between(a.bytes, b.bytes, share))
        for a, b in zip(low.operators, high.operators, strict=True)
    )
    return Pass(at("peak_bytes"), at("end_bytes"), at("outer_peak_bytes"), at("outer_end_bytes"), operators)


def _between(low: int, high: int, share: float) -> int:
    return round(low + (high - low) * share)


def scratch_of(device: Device) -> Callable[[Any, Any, Any], int] | None:
    """What operators take on a device besides their results; see `Meter`."""
    return onednn_scratch if device == "cpu" else None


def shape_bytes(shape: Sequence[int], dtype: torch.dtype) -> int:
    """Of a tensor."""
    size = dtype.itemsize
    for length in shape:
        size *= length
    return size


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
