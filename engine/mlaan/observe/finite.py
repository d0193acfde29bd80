"""Whether a run's numbers are still finite."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from mlaan.engine import Engine
from mlaan.errors import UserError


class NotFinite(UserError):
    """Something of a run is nan or infinite.

    Attributes:
        step: the run's step after which it was seen.
    """

    def __init__(self, message: str, step: int) -> None:
        super().__init__(message)
        self.step = step


def first_bad_loss(engine: Engine, losses: Tensor) -> str:
    """The first of (L,) local losses that is not finite, in words; "" if all are. Waits for the device."""
    for name, module, loss in zip(engine.loss_names, engine.loss_modules, losses.tolist(), strict=True):
        if not math.isfinite(loss):
            return f"the loss {name} of module {module} is {loss}"
    return ""


def first_bad_weight(engine: Engine) -> str:
    """The first weight, twin, buffer or state of the optimizer that is not finite, in words; "" if all are.

    Waits for the device once.
    """
    found = [(name, value) for name, value in _tensors(engine.state_dict()) if value.is_floating_point()]
    sound = torch.stack([value.isfinite().all() for _, value in found]).tolist()
    for (name, value), is_sound in zip(found, sound, strict=True):
        if not is_sound:
            bad = int((~value.isfinite()).sum())
            return f"{name} has {bad:,} of {value.numel():,} values that are not finite"
    return ""


def _tensors(state: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    for key, value in state.items():
        name = f"{prefix}{key}"
        if isinstance(value, Tensor):
            yield name, value
        elif isinstance(value, Mapping):
            yield from _tensors(value, f"{name}.")
        elif isinstance(value, list | tuple):
            yield from _tensors({str(place): item for place, item in enumerate(value)}, f"{name}.")
