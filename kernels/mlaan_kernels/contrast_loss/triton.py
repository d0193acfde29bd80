"""Launches the Triton kernels, and lists the variants of them that ship."""

from typing import NamedTuple

import torch
from torch import Tensor

from mlaan_kernels import launching
from mlaan_kernels.contrast_loss.kernels import anchors_kernel, backward_kernel, directions_kernel, mean_kernel
from mlaan_kernels.launching import INTERPRETED, POINTERS, Variant

FLOATS = "*fp32:16"
ROW = {"BLOCK_D": 256}
BATCH = {"BLOCK_N": 1024}

# Logits to float32's accuracy, on tensor cores where there are any. The matrices are small: there is nothing to tune.
DOT = {"PRECISION": "ieee" if INTERPRETED else "tf32x3", "INTERPRETED": INTERPRETED}
LOGITS = {"BLOCK_I": 64, "BLOCK_J": 32, "BLOCK_E": 32}
GRADIENT = LOGITS | {"BLOCK_D": 64}
MATRIX = {"num_warps": 4, "num_stages": 3}


class Forward(NamedTuple):
    """What the forward gives.

    Attributes:
        loss: ().
        z: (N, E), embeddings scaled to length 1, with zeros behind.
        lengths: (N,), of the embeddings.
        logsums: (N,), log of the sum over the others of exp(logit).
        positives: (N,), number of others of the same class.
        share: (), weight of an anchor in the loss.
    """

    loss: Tensor
    z: Tensor
    lengths: Tensor
    logsums: Tensor
    positives: Tensor
    share: Tensor


def empty_forward(x: Tensor) -> Forward:
    """Memory for what the forward gives, of embeddings x (N, D)."""
    N, D = x.shape
    shapes = ((), (N, -(-D // LOGITS["BLOCK_E"]) * LOGITS["BLOCK_E"]), (N,), (N,), (N,), ())
    return Forward(*(x.new_empty(shape, dtype=torch.float32) for shape in shapes))


def forward(x: Tensor, labels: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The fields of `Forward` for embeddings x (N, D); x and labels are contiguous."""
    N, D = x.shape
    out = empty_forward(x)
    E = out.z.shape[1]
    losses = torch.empty_like(out.lengths)
    launching.launch(directions_kernel, (N,), x, out.z, out.lengths, D, E, **ROW)
    launching.launch(
        anchors_kernel,
        (cdiv(N, LOGITS["BLOCK_I"]),),
        *(out.z, labels, out.logsums, out.positives, losses, N, E, 1 / temperature),
        **LOGITS,
        **DOT,
        **MATRIX,
    )
    launching.launch(mean_kernel, (1,), losses, out.positives, out.loss, out.share, N, **BATCH)
    return out


def backward(
    grad: Tensor,
    z: Tensor,
    lengths: Tensor,
    logsums: Tensor,
    positives: Tensor,
    share: Tensor,
    labels: Tensor,
    temperature: float,
    D: int,
    dtype: torch.dtype,
) -> Tensor:
    """Gradient (N, D) of the embeddings in their dtype, out of the loss's and what the forward gave."""
    N, E = z.shape
    dx = z.new_empty(N, D, dtype=dtype)
    launching.launch(
        backward_kernel,
        (cdiv(N, GRADIENT["BLOCK_I"]), cdiv(D, GRADIENT["BLOCK_D"])),
        *(z, labels, lengths, logsums, positives, share, grad, dx, N, D, E, 1 / temperature),
        **GRADIENT,
        **DOT,
        **MATRIX,
    )
    return dx


def cdiv(a: int, b: int) -> int:
    """a / b rounded up; `triton.cdiv` has no types."""
    return -(-a // b)


def variants() -> list[Variant]:
    """Every dtype, for wide and odd rows."""
    batch = dict.fromkeys(("losses_N", "positives_N", "loss", "share"), FLOATS) | {"N": "i32"}
    anchors = dict.fromkeys(("z_NE", "logsums_N", "positives_N"), FLOATS) | {"labels_N": "*i64:16"}
    anchors |= {"N": "i32", "E": "i32:16", "sharpness": "fp32"}
    backward = anchors | dict.fromkeys(("lengths_N", "share", "grad"), FLOATS)
    anchors |= {"losses_N": FLOATS}
    found = [
        Variant("contrast_loss mean", mean_kernel, batch, BATCH),
        Variant("contrast_loss anchors", anchors_kernel, anchors, LOGITS | DOT, **MATRIX, matrix=True),
    ]
    for end, width in (("", "i32"), (" wide", "i32:16")):
        for dtype in POINTERS:
            x, word = {"x_ND": f"{POINTERS[dtype]}:16", "D": width}, POINTERS[dtype][1:]
            rows = x | {"z_NE": FLOATS, "lengths_N": FLOATS, "E": "i32:16"}
            gradient = backward | {"dx_ND": x["x_ND"], "D": width}
            constants = GRADIENT | DOT
            found += [
                Variant(f"contrast_loss directions {word}{end}", directions_kernel, rows, ROW),
                Variant(
                    f"contrast_loss backward {word}{end}", backward_kernel, gradient, constants, **MATRIX, matrix=True
                ),
            ]
    return found
