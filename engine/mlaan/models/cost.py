"""What one pass through a piece of network costs: operations, bytes moved, and memory while it runs and after it.

Costs are added up here for modules in a row, and drawn in a straight line between two batch sizes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import torch

from mlaan.models.meter import Operator

Device = Literal["cpu", "cuda"]


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
PASSES = ("forward", "kept", "propagate", "propagated", "weights", "both", "joint", "joint_end")


def add_bytes(one: Pass, peak: int, end: int) -> Pass:
    """The pass with so many bytes more at its peak and at its end."""
    return replace(
        one,
        peak_bytes=one.peak_bytes + peak,
        outer_peak_bytes=one.outer_peak_bytes + peak,
        end_bytes=one.end_bytes + end,
        outer_end_bytes=one.outer_end_bytes + end,
    )


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


def shape_bytes(shape: Sequence[int], dtype: torch.dtype) -> int:
    """Of a tensor."""
    size = dtype.itemsize
    for length in shape:
        size *= length
    return size
