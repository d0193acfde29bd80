"""The move of twins where no update operator does it."""

from collections.abc import Sequence

import torch
from torch import Tensor


def move_twins(twins: Sequence[tuple[Tensor, Tensor, float]], finite: Tensor | None) -> None:
    """Move each (source, twin, keep): twin <- keep * twin + (1 - keep) * source; without gradient mode.

    Args:
        twins: sources and twins alike in shape and dtype, on one device.
        finite: one bool on the device; False leaves the twins as they are, and costs a copy of the sources.
    """
    alike: dict[tuple[float, torch.dtype], tuple[list[Tensor], list[Tensor]]] = {}
    for source, twin, keep in twins:
        sources, moved = alike.setdefault((keep, twin.dtype), ([], []))
        sources.append(source)
        moved.append(twin)
    for (keep, dtype), (sources, moved) in alike.items():
        if finite is None:
            torch._foreach_mul_(moved, keep)  # type: ignore[attr-defined]
            torch._foreach_add_(moved, sources, alpha=1 - keep)  # type: ignore[attr-defined]
        else:
            yes = finite.to(dtype)
            torch._foreach_mul_(moved, yes * keep + (1 - yes))  # type: ignore[attr-defined]
            torch._foreach_add_(moved, torch._foreach_mul(sources, yes * (1 - keep)))  # type: ignore[attr-defined]
