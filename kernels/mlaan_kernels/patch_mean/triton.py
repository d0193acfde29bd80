"""Triton kernels of the mean of patches, and their launches.

Legend: h_MC is a map (N, C, H, W) in channels_last as a matrix of M = N * H * W rows (one pixel of one image) and C
columns; mean_mC the same of the mean, m = N * h * w, h = ceil(H / PATCHES), w = ceil(W / PATCHES). Part (i, j) starts
at row i * H // PATCHES and column j * W // PATCHES.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from mlaan_kernels import launching
from mlaan_kernels.launching import POINTERS, Variant


class Blocks(NamedTuple):
    """Rows and columns that a program has in hand: 16 numbers for each of 128 threads."""

    BLOCK_M: int
    BLOCK_C: int


BLOCKS = (Blocks(128, 16), Blocks(64, 32), Blocks(32, 64), Blocks(16, 128))


@triton.jit
def forward_kernel(
    h_MC, mean_mC, m, H, W, h, w, C, PATCHES: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr
):
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    cols = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask = (row < m)[:, None] & (cols < C)[None, :]
    n = row // (h * w)
    y = row // w % h
    x = row % w
    total = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    for i in range(PATCHES):
        # unrolled: these loads are under way together
        for j in tl.static_range(PATCHES):  # pyright: ignore[reportGeneralTypeIssues]
            source = (n * H + i * H // PATCHES + y) * W + j * W // PATCHES + x
            total += tl.load(h_MC + source.to(tl.int64)[:, None] * C + cols[None, :], mask=mask, other=0.0).to(
                tl.float32
            )
    mean = total * (1.0 / (PATCHES * PATCHES))
    tl.store(mean_mC + row.to(tl.int64)[:, None] * C + cols[None, :], mean.to(mean_mC.dtype.element_ty), mask=mask)


@triton.jit
def backward_kernel(
    dmean_mC, dh_MC, M, H, W, h, w, C, PATCHES: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr
):
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    cols = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask = (row < M)[:, None] & (cols < C)[None, :]
    n = row // (H * W)
    Y = row // W % H
    X = row % W
    total = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    for i in range(PATCHES):
        y = Y - i * H // PATCHES
        for j in tl.static_range(PATCHES):  # pyright: ignore[reportGeneralTypeIssues]
            x = X - j * W // PATCHES
            within = (y >= 0) & (y < h) & (x >= 0) & (x < w)  # most pixels lie in one part: one load each
            source = (n * h + y) * w + x
            total += tl.load(
                dmean_mC + source.to(tl.int64)[:, None] * C + cols[None, :], mask=mask & within[:, None], other=0.0
            ).to(tl.float32)
    dh = total * (1.0 / (PATCHES * PATCHES))
    tl.store(dh_MC + row.to(tl.int64)[:, None] * C + cols[None, :], dh.to(dh_MC.dtype.element_ty), mask=mask)


def blocks_for(channels: int) -> Blocks:
    """The narrowest block that holds all channels, else the widest."""
    return next((blocks for blocks in BLOCKS if channels <= blocks.BLOCK_C), BLOCKS[-1])


def forward(h: Tensor, patches: int) -> Tensor:
    """(N, C, ceil(H / patches), ceil(W / patches)) of h (N, C, H, W), both channels_last."""
    N, C, H, W = h.shape
    mean = empty_map(h, (N, C, cdiv(H, patches), cdiv(W, patches)))
    _launch(forward_kernel, h, mean, mean, h, patches)
    return mean


def backward(dmean: Tensor, patches: int, height: int, width: int) -> Tensor:
    """Gradient (N, C, height, width) of the map, out of the mean's; both channels_last."""
    dh = empty_map(dmean, (*dmean.shape[:2], height, width))
    _launch(backward_kernel, dmean, dh, dh, dh, patches)
    return dh


def empty_map(like: Tensor, shape: tuple[int, ...]) -> Tensor:
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


def _launch(
    kernel: triton.JITFunction, source: Tensor, out: Tensor, rows_of: Tensor, whole: Tensor, patches: int
) -> None:
    """Launch one program for each block of the map that is written."""
    _, C, H, W = whole.shape
    rows, blocks = rows_of.numel() // max(C, 1), blocks_for(C)
    launching.launch(
        kernel,
        (cdiv(rows, blocks.BLOCK_M), cdiv(C, blocks.BLOCK_C)),
        *(source, out, rows, H, W, cdiv(H, patches), cdiv(W, patches), C),
        PATCHES=patches,
        **blocks._asdict(),
    )


def cdiv(a: int, b: int) -> int:
    """a / b rounded up; `triton.cdiv` has no types."""
    return -(-a // b)


def variants() -> list[Variant]:
    """Every dtype and block, for wide and odd channel counts, and the 2 x 2 patches of the paper."""
    return [
        Variant(
            f"patch_mean {name} {POINTERS[dtype][1:]} {blocks.BLOCK_M}x{blocks.BLOCK_C}{' wide' if wide else ''}",
            kernel,
            {source: f"{POINTERS[dtype]}:16", out: f"{POINTERS[dtype]}:16", rows: "i32"}
            | dict.fromkeys(("H", "W", "h", "w"), "i32")
            | {"C": "i32:16" if wide else "i32"},
            {"PATCHES": 2, **blocks._asdict()},
        )
        for name, kernel, source, out, rows in (
            ("forward", forward_kernel, "h_MC", "mean_mC", "m"),
            ("backward", backward_kernel, "dmean_mC", "dh_MC", "M"),
        )
        for dtype in POINTERS
        for blocks in BLOCKS
        for wide in (True, False)
    ]
