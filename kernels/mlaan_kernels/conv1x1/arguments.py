"""What may be passed to `mlaan_kernels.conv1x1`; every check raises ValueError and says what to give."""

import torch
from torch import Tensor

from mlaan_kernels.norm import Norm

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def check_map(name: str, tensor: Tensor) -> None:
    """An activation or a gradient of one."""
    if tensor.ndim != 4 or tensor.numel() == 0:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}: give (N, C, H, W), none of them 0")
    if tensor.dtype not in DTYPES:
        raise ValueError(f"{name} is {tensor.dtype}: give float32, bfloat16, float16 or float64")


def check_weight(weight: Tensor, like: Tensor, groups: int, stride: int) -> None:
    """The weight by itself; `like` is the activation that comes along with it."""
    if stride not in (1, 2):
        raise ValueError(f"stride is {stride}: give 1 or 2")
    if weight.ndim != 4 or weight.shape[2:] != (1, 1) or weight.numel() == 0:
        raise ValueError(f"weight has shape {tuple(weight.shape)}: give (Cout, Cin / groups, 1, 1)")
    if groups < 1 or weight.shape[0] % groups:
        raise ValueError(f"groups is {groups}: give a divisor of the {weight.shape[0]} output channels of weight")
    check_like("weight", weight, like)


def check_like(name: str, tensor: Tensor, like: Tensor) -> None:
    """Same dtype and device."""
    if tensor.dtype != like.dtype or tensor.device != like.device:
        raise ValueError(
            f"{name} is {tensor.dtype} on {tensor.device}: give {like.dtype} on {like.device}, as the others are"
        )


def check_shape(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}: give {shape}")


def check_slices(name: str, slices: int, images: int) -> None:
    if slices < 1 or images % slices:
        raise ValueError(f"{name} is {slices}: give a divisor of the {images} images")


def check_norm(norm: Norm, x: Tensor) -> None:
    """`x` is what the BatchNorm takes in."""
    if norm.mean.ndim != 2:
        raise ValueError(f"norm.mean has shape {tuple(norm.mean.shape)}: give (slices, {x.shape[1]})")
    check_slices("norm.slices", norm.slices, x.shape[0])
    dtype = torch.promote_types(x.dtype, torch.float32)
    for name, values in norm._asdict().items():
        check_shape(f"norm.{name}", values, (x.shape[1],) if name == "bias" else (norm.slices, x.shape[1]))
        if values.dtype != dtype or values.device != x.device:
            raise ValueError(f"norm.{name} is {values.dtype} on {values.device}: give {dtype} on {x.device}")
