"""What may be passed to `grad_norm`, for both of its forms."""

from collections.abc import Sequence

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def check_grads(grads: Sequence[Tensor]) -> None:
    """Raises ValueError for the first gradient that does not fit, by name."""
    dtype, device = grads[0].dtype, grads[0].device
    if dtype not in DTYPES:
        raise ValueError(f"grads[0] is {dtype}: float32, float64, bfloat16 and float16 are supported")
    for index, grad in enumerate(grads):
        if grad.dtype != dtype or grad.device != device:
            raise ValueError(
                f"grads[{index}] is {grad.dtype} on {grad.device}, grads[0] {dtype} on {device}: they must be alike"
            )
