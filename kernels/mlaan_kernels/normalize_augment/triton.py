"""The Triton kernel of shift, mirror and normalisation, and its launch.

Legend: images_NHWC uint8 and views_NHWC are N images of H rows, W columns and C channels, channels innermost. A program
has some rows of one view, and some of the W * C numbers of each.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from mlaan_kernels import launching
from mlaan_kernels.launching import POINTERS, Variant

BLOCKS = {"BLOCK_H": 8, "BLOCK_X": 256}


@triton.jit
def _hash(x):
    """As in reference.py."""
    x = ((x ^ (x >> 17)) * 0xED5AD4BB) & 0xFFFFFFFF
    x = ((x ^ (x >> 11)) * 0xAC4C1B51) & 0xFFFFFFFF
    x = ((x ^ (x >> 15)) * 0x31848BAB) & 0xFFFFFFFF
    return x ^ (x >> 14)


@triton.jit
def _reflected(place, size):
    return (size - 1) - tl.abs((size - 1) - tl.abs(place))


@triton.jit
def kernel(
    images_NHWC,
    mean_C,
    std_C,
    seeds_N,
    views_NHWC,
    H,
    W,
    pad,
    C: tl.constexpr,
    REFLECT: tl.constexpr,
    FLIP: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_X: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64)
    seed = tl.load(seeds_N + n)
    state = _hash(_hash(seed & 0xFFFFFFFF) ^ ((seed >> 32) & 0xFFFFFFFF))
    down = ((_hash((state + 0x9E3779B9) & 0xFFFFFFFF) * (2 * pad + 1)) >> 32).to(tl.int32) - pad
    right = ((_hash((state + 2 * 0x9E3779B9) & 0xFFFFFFFF) * (2 * pad + 1)) >> 32).to(tl.int32) - pad
    out_y = (tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H))[:, None]
    flat = (tl.program_id(2) * BLOCK_X + tl.arange(0, BLOCK_X))[None, :]
    wanted = (out_y < H) & (flat < W * C)
    channel = flat % C
    y = out_y + down
    x = flat // C
    if FLIP:
        mirrored = (_hash((state + 3 * 0x9E3779B9) & 0xFFFFFFFF) >> 31) == 1
        x = tl.where(mirrored, W - 1 - x, x)
    x += right
    if REFLECT:
        y = _reflected(y, H)
        x = _reflected(x, W)
        inside = wanted
    else:
        inside = wanted & (y >= 0) & (y < H) & (x >= 0) & (x < W)
    source = (y * W + x) * C + channel
    image = n * H * W * C
    pixels = tl.load(images_NHWC + image + source, mask=inside, other=0).to(tl.float32)
    # As in reference.py, rounding by rounding.
    unit: tl.constexpr = 1 / 255
    one = tl.full((), unit, tl.float32)
    centre = tl.zeros((1, BLOCK_X), tl.float32)
    scale = tl.zeros((1, BLOCK_X), tl.float32)
    for c in tl.static_range(C):
        centre = tl.where(channel == c, tl.div_rn(tl.load(mean_C + c), one), centre)
        scale = tl.where(channel == c, tl.div_rn(one, tl.load(std_C + c)), scale)
    views = (pixels - centre) * scale
    place = image + out_y * (W * C) + flat
    tl.store(views_NHWC + place, views.to(views_NHWC.dtype.element_ty), mask=wanted)


def normalize_augment(
    images: Tensor, mean: Tensor, std: Tensor, seeds: Tensor, pad: int, reflect: bool, flip: bool, dtype: torch.dtype
) -> Tensor:
    """See `mlaan_kernels.normalize_augment.normalize_augment`; everything is contiguous."""
    N, H, W, C = images.shape
    views = empty_views(images, dtype)
    launching.launch(
        kernel,
        (N, cdiv(H, BLOCKS["BLOCK_H"]), cdiv(W * C, BLOCKS["BLOCK_X"])),
        *(images, mean, std, seeds, views, H, W, pad),
        C=C,
        REFLECT=reflect,
        FLIP=flip,
        **BLOCKS,
    )
    return views


def empty_views(images: Tensor, dtype: torch.dtype) -> Tensor:
    N, H, W, C = images.shape
    return torch.empty((N, C, H, W), dtype=dtype, device=images.device, memory_format=torch.channels_last)


def cdiv(a: int, b: int) -> int:
    """a / b rounded up; `triton.cdiv` has no types."""
    return -(-a // b)


def variants() -> list[Variant]:
    """Every dtype, channel count, edge and choice of mirroring."""
    return [
        Variant(
            f"normalize_augment {POINTERS[dtype][1:]} C{C}{' reflect' * reflect}{' flip' * flip}",
            kernel,
            {"images_NHWC": "*u8:16", "mean_C": "*fp32:16", "std_C": "*fp32:16", "seeds_N": "*i64:16"}
            | {"views_NHWC": f"{POINTERS[dtype]}:16", "H": "i32", "W": "i32:16", "pad": "i32"},
            {"C": C, "REFLECT": reflect, "FLIP": flip, **BLOCKS},
        )
        for dtype in POINTERS
        for C in range(1, 5)
        for reflect in (False, True)
        for flip in (False, True)
    ]
