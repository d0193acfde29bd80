"""Which executor runs a plan."""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from mlaan.execute.eager import EagerExecutor
from mlaan.execute.graph import CudaGraphs, GraphExecutor
from mlaan.execute.lanes import CudaLanes
from mlaan.execute.streams import StreamExecutor
from mlaan.plan.lanes import LanePlan

Executor = EagerExecutor | GraphExecutor


def make_executor(
    wanted: str,
    device: torch.device,
    lanes_for: Callable[[tuple[int, ...]], LanePlan],
    prepare: Callable[[], None],
    **parts: Any,
) -> Executor:
    """The executor that `train.executor` = `wanted` means on a device.

    Where there is no GPU a RuntimeWarning says that the eager one runs; on the meta device it is only planned.

    Args:
        lanes_for, prepare: see `StreamExecutor` and `GraphExecutor`.
        parts: see `EagerExecutor`.
    """
    if wanted == "eager" or device.type == "meta":
        return EagerExecutor(**parts)
    if device.type != "cuda":
        warnings.warn(
            f"train.executor = {wanted!r} needs an NVIDIA GPU: on {device} tasks run one after the other",
            RuntimeWarning,
            stacklevel=3,
        )
        return EagerExecutor(**parts)
    streams = StreamExecutor(**parts, lanes_for=lanes_for, make_lanes=partial(CudaLanes, device))
    return streams if wanted == "streams" else GraphExecutor(streams, CudaGraphs(device), prepare)
