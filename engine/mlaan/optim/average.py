"""A moving average of a network's weights, which is often better than the weights themselves."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mlaan.errors import UserError


def average_bytes(net: nn.Module) -> int:
    """Bytes that a `WeightAverage` of `net` holds."""
    return sum(
        value.numel() * (4 if value.dtype == torch.bfloat16 and value.requires_grad else value.element_size())
        for value in net.state_dict(keep_vars=True).values()
    )


class WeightAverage:
    """average <- d * average + (1 - d) * value, after every update (Polyak averaging, with a fixed rate).

    d is min(decay, (1 + t) / (10 + t)) at update t, from 1: so that the random start is soon forgotten (the rule of
    TensorFlow's ExponentialMovingAverage). Running statistics are averaged like weights; whole numbers are copied. The
    averages are float32, or float64 for such weights. Nothing waits for the device.

    Args:
        net: whose state is averaged.
        decay: from 0 to below 1.
        masters: float32 values of bfloat16 weights, which are averaged in their place.
    """

    def __init__(self, net: nn.Module, decay: float, masters: Mapping[nn.Parameter, Tensor]) -> None:
        self.decay, self.updates = decay, 0
        live = net.state_dict(keep_vars=True)
        self._values = {name: masters.get(value, value.detach()) for name, value in live.items()}
        self._dtypes = {name: value.dtype for name, value in live.items()}
        self.averages = {name: value.detach().clone() for name, value in self._values.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Moves the averages towards the present weights."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        floating = [name for name, value in self._values.items() if value.is_floating_point()]
        for dtype in {self._values[name].dtype for name in floating}:
            names = [name for name in floating if self._values[name].dtype == dtype]
            averages, values = [self.averages[name] for name in names], [self._values[name] for name in names]
            torch._foreach_lerp_(averages, values, 1 - decay)  # pyright: ignore[reportPrivateImportUsage]
        for name, value in self._values.items():
            if not value.is_floating_point():
                self.averages[name].copy_(value)

    def weights(self) -> dict[str, Tensor]:
        """The averages by the network's own names, in its dtypes."""
        return {name: value.to(self._dtypes[name]) for name, value in self.averages.items()}

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.updates, "weights": dict(self.averages)}

    def check(self, state: Mapping[str, Any]) -> None:
        """Raises UserError for a state that `load_state_dict` would not take."""
        given = state.get("weights", {})
        for name in [*self.averages, *given]:
            if name not in self.averages or name not in given or self.averages[name].shape != given[name].shape:
                raise UserError(f"average.{name} of the state does not fit: another model's, or without train.average?")

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.updates = state["updates"]
        for name, own in self.averages.items():
            own.copy_(state["weights"][name])
