"""The forms, dtypes and shapes that the operators' tests share."""

import pytest
import torch
from torch import Tensor

from mlaan_kernels.choice import interpreting

devices = pytest.mark.parametrize(
    "device",
    [
        pytest.param(
            "cpu",
            marks=pytest.mark.skipif(not interpreting(), reason="Triton's interpreter is off where there is a GPU"),
        ),
        pytest.param("cuda", marks=pytest.mark.gpu),
    ],
)
"""Where the Triton form runs: interpreted on the CPU, or truly launched."""

dtypes = pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["float32", "bfloat16", "float16"]
)

# Triton's interpreter truncates to bfloat16 where hardware rounds.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2**-7, torch.float16: 2**-9}


def relative_gap(found: Tensor, wanted: Tensor) -> float:
    """|found - wanted| / |wanted| in the Euclidean norm, or |found| where `wanted` is all zeros."""
    found, wanted = found.detach().double().cpu(), wanted.detach().double().cpu()
    return float((found - wanted).norm() / (wanted.norm() if wanted.norm() > 0 else 1))


def assert_near(found: Tensor, wanted: Tensor, tolerance: float, name: str = "") -> None:
    """`relative_gap` is at most `tolerance`; NaN, inf and other shapes never pass."""
    assert found.shape == wanted.shape, f"{name}: shape {tuple(found.shape)}, not {tuple(wanted.shape)}"
    gap = relative_gap(found, wanted)
    assert gap <= tolerance, f"{name}: off by {gap:.1e}, allowed {tolerance:.1e}"


def randn(*shape: int, dtype: torch.dtype = torch.float32, device: str = "cpu", seed: int = 0) -> Tensor:
    """Normal numbers, the same on every device; maps (4 dimensions) come in channels_last."""
    random = torch.Generator().manual_seed(seed)
    values = torch.randn(*shape, generator=random, dtype=torch.float64).to(device, dtype)
    return values.contiguous(memory_format=torch.channels_last) if values.ndim == 4 else values
