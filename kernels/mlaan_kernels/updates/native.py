"""Updates through the compiled operators mlaan::<rule>_update (csrc/multi_tensor*, csrc/<rule>_update*)."""

import functools
from typing import Any

import torch
from torch import Tensor

from mlaan_kernels.updates.arguments import Update


def run(name: str, update: Update, *numbers: float) -> Tensor | None:
    """Calls mlaan::`name` with the rule's own `numbers`; without gradient mode, the library loaded."""
    params, states = update.params, list(update.states.values())
    skipped = torch.empty((), dtype=torch.int32, device=params[0].device) if update.reports else None
    twins = [twin.tensor for twin in update.twins]
    try:
        operator(name)(
            params,
            update.grads,
            update.masters,
            states[0],
            states[1] if len(states) > 1 else (),
            twins,
            [twin.param for twin in update.twins],
            [twin.keep for twin in update.twins],
            [int(excluded) for excluded in update.excluded],
            *_dial(update.learning_rate),
            *_dial(update.step),
            update.inverse_scale,
            update.grad_scale,
            update.check_finite,
            update.finite,
            skipped,
            *numbers,
        )
    except RuntimeError:
        # The operator refuses whatever does not fit, before it writes. Words for people cost time, so they
        # are looked for only now.
        update.check()
        raise
    # As after any in-place change: a backward pass that still needs the old values must raise.
    moved = [tensor for tensors in states for tensor in tensors] if update.uses_states else []
    torch.autograd.graph.increment_version([*params, *update.masters, *moved, *twins])
    return skipped


@functools.cache
def operator(name: str) -> Any:
    """torch.ops.mlaan.`name`, which only changes tensors that it is given; so much for fake tensors."""
    torch.library.register_fake(f"mlaan::{name}", lambda *arguments: None)
    return getattr(torch.ops.mlaan, name).default


def _dial(number: float | Tensor) -> tuple[float, Tensor | None]:
    return (0.0, number) if isinstance(number, Tensor) else (number, None)
