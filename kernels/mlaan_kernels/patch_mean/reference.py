"""The mean of patches in plain PyTorch, on any device and any float dtype: the judge in tests and the CPU's form."""

import torch
from torch import Tensor


def patch_mean(h: Tensor, patches: int) -> Tensor:
    """See `mlaan_kernels.patch_mean.patch_mean`; half dtypes are summed in float32."""
    height, width = (-(-size // patches) for size in h.shape[2:])
    tops, lefts = ([part * size // patches for part in range(patches)] for size in h.shape[2:])
    summed = torch.promote_types(h.dtype, torch.float32)
    parts = [h[:, :, top : top + height, left : left + width].to(summed) for top in tops for left in lefts]
    return (sum(parts[1:], start=parts[0]) / patches**2).to(h.dtype)
