"""Mean of a map's patches: the patch feature fusion of HPFF (Su et al., ECCV 2024)."""

from torch import Tensor

from mlaan_kernels.choice import Implementation, use_triton
from mlaan_kernels.patch_mean import reference

__all__ = ["patch_mean"]


def patch_mean(h: Tensor, patches: int, *, implementation: Implementation = "auto") -> Tensor:
    """Mean of the patches x patches parts that a map is cut into, differentiable by h; maths in this folder's README.

    All parts have one size. Where a side does not divide, neighbouring parts overlap.

    Args:
        h: (N, C, H, W), float32, bfloat16, float16, or float64 for the reference.
        patches: parts along each side, at least 1.
        implementation: "auto", "reference" or "triton"; see `mlaan_kernels.choice`.

    Returns:
        (N, C, ceil(H / patches), ceil(W / patches)) of h's dtype.

    Raises:
        ValueError: h is no map of floats, or patches < 1.
    """
    if h.ndim != 4 or not h.is_floating_point():
        raise ValueError(f"h of shape {tuple(h.shape)} and {h.dtype} is no map (N, C, H, W) of floats")
    if patches < 1:
        raise ValueError(f"patches = {patches} must be at least 1")
    if not use_triton("patch_mean", implementation, h):
        return reference.patch_mean(h, patches)
    from mlaan_kernels.patch_mean import autograd

    return autograd.PatchMean.apply(h, patches)
