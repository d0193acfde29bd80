"""The precision that a step computes in."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mlaan.errors import UserError
from mlaan.execute.module import Autocast

AUTOCAST = {"bfloat16": torch.bfloat16, "float16": torch.float16}
"""The precisions that run under autocast; the others keep the weights' own dtype."""


def make_autocast(precision: str, weight: Tensor) -> Autocast:
    """Raises UserError where the weights are not float32, which alone have a lower precision to run in."""
    if precision == "float32":
        return nullcontext
    if weight.dtype != torch.float32:
        raise UserError(f"train.precision = {precision!r} needs float32 weights, not {weight.dtype}")
    if precision not in AUTOCAST:
        return nullcontext
    return partial(torch.autocast, weight.device.type, AUTOCAST[precision])


@contextmanager
def arithmetic(precision: str) -> Iterator[None]:
    """float32 on a GPU inside the block: short (TF32) for precision "tf32", else in full; see `TrainConfig`."""
    matmul: Any = torch.backends.cuda.matmul
    cudnn: Any = torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = precision == "tf32"
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


@torch.no_grad()
def shorten(parts: Iterable[nn.Module], dtype: torch.dtype) -> dict[nn.Parameter, Tensor]:
    """Turn the trained weights of convolutions and linear layers into `dtype`, in place.

    Biases, normalisations and frozen weights, such as those of twins, stay.

    Returns:
        For each that was turned its value of before.
    """
    before: dict[nn.Parameter, Tensor] = {}
    for layer in (layer for part in parts for layer in part.modules()):
        weight = getattr(layer, "weight", None)
        convolves = isinstance(layer, nn.Linear | nn.modules.conv._ConvNd)
        if convolves and isinstance(weight, nn.Parameter) and weight.requires_grad and weight not in before:
            before[weight] = weight.data
            weight.data = weight.data.to(dtype)
    return before
