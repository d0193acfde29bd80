"""The ways through a module, each run once on the meta device, where nothing is computed, under a meter."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mlaan.models.cost import Device, Pass, shape_bytes
from mlaan.models.meter import Meter, onednn_scratch, storage_key
from mlaan_kernels.blocks import Chain, Cotangent, backward


class Autograd:
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


class ByHand:
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


def read(meter: Meter) -> Pass:
    """What ran since the meter's start."""
    outer = meter.level + meter.gone
    return Pass(meter.peak, meter.level, meter.outer_peak, outer, tuple(meter.operators))


def scratch_of(device: Device) -> Callable[[Any, Any, Any], int] | None:
    """What operators take on a device besides their results; see `Meter`."""
    return onednn_scratch if device == "cpu" else None
