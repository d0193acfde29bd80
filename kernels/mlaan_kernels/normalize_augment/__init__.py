"""Random shift, mirror and normalisation of uint8 images in one pass."""

from typing import Literal

import torch
from torch import Tensor

from mlaan_kernels.choice import Implementation, use_triton
from mlaan_kernels.normalize_augment import reference

__all__ = ["Edge", "normalize_augment"]

Edge = Literal["zero", "reflect"]


def normalize_augment(
    images: Tensor,
    mean: Tensor,
    std: Tensor,
    seeds: Tensor,
    *,
    pad: int = 0,
    edge: Edge = "zero",
    flip: bool = False,
    dtype: torch.dtype = torch.bfloat16,
    implementation: Implementation = "auto",
) -> Tensor:
    """(x / 255 - mean) / std of the randomly shifted and mirrored images; the maths is in this folder's README.

    Every image is shifted by -pad to pad pixels up or down and left or right, all shifts equally likely, then mirrored
    left to right half the time. Its own seed alone decides: the same image and seed give the same view wherever it
    stands in the batch, on any device, in either form.

    Args:
        images: (N, H, W, C) uint8, C from 1 to 4.
        mean, std: (C,) float32, of pixels from 0 to 1.
        seeds: (N,) int64, any numbers; neighbouring ones serve as well as distant ones.
        pad: largest shift in pixels; 0 leaves the images where they are.
        edge: what is shifted in: "zero", pixels of value 0 before the normalisation, or "reflect", the image mirrored
            at its outermost pixels without repeating them.
        flip: False: no image is mirrored.
        dtype: of the result: bfloat16, float16, float32, or float64 for the reference. Computed in float32 at least.
        implementation: "auto", "reference" or "triton"; see `mlaan_kernels.choice`.

    Returns:
        (N, C, H, W) in channels_last.

    Raises:
        ValueError: shapes, dtypes or devices do not fit; pad < 0, or as wide as a reflected image; an unknown edge.
    """
    if images.ndim != 4 or images.dtype != torch.uint8 or not 1 <= images.shape[3] <= 4:
        raise ValueError(
            f"images of shape {tuple(images.shape)} and {images.dtype}: give uint8 (N, H, W, C) with C from 1 to 4"
        )
    N, H, W, C = images.shape
    for name, tensor, shape, kind in (
        ("mean", mean, (C,), torch.float32),
        ("std", std, (C,), torch.float32),
        ("seeds", seeds, (N,), torch.int64),
    ):
        if tensor.shape != shape or tensor.dtype != kind or tensor.device != images.device:
            raise ValueError(
                f"{name} of shape {tuple(tensor.shape)} and {tensor.dtype} on {tensor.device}: give {kind} of shape "
                f"{shape} on {images.device}"
            )
    if edge not in ("zero", "reflect"):
        raise ValueError(f"edge is {edge!r}: it is 'zero' or 'reflect'")
    if pad < 0 or (edge == "reflect" and pad >= min(H, W)):
        raise ValueError(f"pad = {pad}: it is at least 0 and, with edge = 'reflect', less than the {H}x{W} images")
    if not dtype.is_floating_point:
        raise ValueError(f"dtype is {dtype}: it is a float dtype, such as torch.bfloat16")
    if not use_triton("normalize_augment", implementation, torch.empty(0, dtype=dtype, device=images.device)):
        return reference.normalize_augment(images, mean, std, seeds, pad, edge == "reflect", flip, dtype)
    from mlaan_kernels.normalize_augment import autograd

    sources = (images.contiguous(), mean.contiguous(), std.contiguous(), seeds.contiguous())
    return autograd.normalize_augment(*sources, pad, edge == "reflect", flip, dtype)
