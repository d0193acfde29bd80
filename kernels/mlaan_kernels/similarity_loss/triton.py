"""Launches the Triton kernels, and lists the variants of them that ship."""

import torch
from torch import Tensor

from mlaan_kernels import launching
from mlaan_kernels.launching import INTERPRETED, POINTERS, Variant
from mlaan_kernels.similarity_loss.kernels import (
    backward_kernel,
    directions_kernel,
    errors_kernel,
    moments_kernel,
    slopes_kernel,
)
from mlaan_kernels.similarity_loss.reference import label_cosines, takes_deviations

FLOATS = "*fp32:16"
PIXELS = {"BLOCK_P": 64, "BLOCK_C": 32}
ROW = {"BLOCK_R": 1024}
ROUNDING = 8 * torch.finfo(torch.float32).eps
"""Share of a row's length below which its distance from a constant row is rounding."""

# Cosines to float32's accuracy, on tensor cores where there are any. The matrices are small: there is nothing to tune.
DOT = {"PRECISION": "ieee" if INTERPRETED else "tf32x3", "INTERPRETED": INTERPRETED}
ERRORS = {"BLOCK_I": 64, "BLOCK_J": 32, "BLOCK_E": 32}
SLOPES = {"BLOCK_I": 64, "BLOCK_J": ERRORS["BLOCK_J"], "BLOCK_R": 32}
MATRIX = {"num_warps": 4, "num_stages": 3}


def forward(features: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """The loss (), and what its gradient is made of: means (N, C) of standard deviations' channels, and slopes (N, R).

    Args:
        features: channels_last.
        labels: contiguous.
    """
    N, C, H, W = features.shape
    P, deviations = H * W, takes_deviations(features)
    std = None
    mean = features.new_empty((N, C) if deviations else (0,), dtype=torch.float32)
    if deviations:
        std = torch.empty_like(mean)
        grid = (N, cdiv(C, PIXELS["BLOCK_C"]))
        launching.launch(moments_kernel, grid, features, mean, std, P, C, **PIXELS)
    R = C if deviations else C * P
    E = _rounded_up(R, ERRORS["BLOCK_E"])
    directions = mean.new_empty(N, E)
    inverse = mean.new_empty(N)
    # Cosines do not mind the order of a row's numbers: a map that is taken as it is keeps that of its memory.
    rows = features if std is None else std
    launching.launch(directions_kernel, (N,), rows, directions, inverse, R, E, ROUNDING, **ROW)

    cosines = label_cosines(num_classes)
    M = _rounded_up(N, ERRORS["BLOCK_J"])
    tiles = (cdiv(N, ERRORS["BLOCK_I"]), M // ERRORS["BLOCK_J"])
    errors, sums = mean.new_empty(N, M), mean.new_empty(tiles)
    arguments = (directions, labels, errors, sums, N, M, E, *cosines)
    launching.launch(errors_kernel, tiles, *arguments, **ERRORS, **DOT, **MATRIX)
    slopes = mean.new_empty(N, R)
    launching.launch(
        slopes_kernel,
        (cdiv(N, SLOPES["BLOCK_I"]), cdiv(R, SLOPES["BLOCK_R"])),
        *(errors, directions, labels, inverse, std, slopes, N, M, E, R, *cosines),
        4 / N**2 / (P - 1 if deviations else 1),
        **SLOPES,
        **DOT,
        **MATRIX,
    )
    return sums.sum() / N**2, mean, slopes


def _rounded_up(number: int, block: int) -> int:
    return cdiv(number, block) * block


def backward(features: Tensor, mean: Tensor, slopes: Tensor, grad: Tensor) -> Tensor:
    """Gradient of channels_last features whose rows are standard deviations."""
    N, C, H, W = features.shape
    out, tiles = torch.empty_like(features), cdiv(H * W, PIXELS["BLOCK_P"])
    grid = (N * tiles, cdiv(C, PIXELS["BLOCK_C"]))
    launching.launch(backward_kernel, grid, features, mean, slopes, grad, out, H * W, C, tiles, **PIXELS)
    return out


def cdiv(a: int, b: int) -> int:
    """a / b rounded up; `triton.cdiv` has no types."""
    return -(-a // b)


def variants() -> list[Variant]:
    """Every dtype, for wide and odd channel counts, rows of deviations and of the features themselves."""
    matrices = dict.fromkeys(("errors_NM", "directions_NE"), FLOATS) | {"labels_N": "*i64:16", "N": "i32"}
    matrices |= {"M": "i32:16", "E": "i32:16", "same": "fp32", "others": "fp32"}
    errors = matrices | {"sums_T": FLOATS}
    found = [Variant("similarity_loss errors", errors_kernel, errors, ERRORS | DOT, **MATRIX, matrix=True)]
    for end, width in (("", "i32"), (" wide", "i32:16")):
        slopes = matrices | {"inverse_N": FLOATS, "slopes_NR": FLOATS, "R": width, "scale": "fp32"}
        plain, of_std = SLOPES | DOT | {"std_NR": None}, slopes | {"std_NR": FLOATS}
        found += [
            Variant(f"similarity_loss slopes{end}", slopes_kernel, slopes, plain, **MATRIX, matrix=True),
            Variant(f"similarity_loss slopes std{end}", slopes_kernel, of_std, SLOPES | DOT, **MATRIX, matrix=True),
        ]
        for dtype in POINTERS:
            x, word = f"{POINTERS[dtype]}:16", POINTERS[dtype][1:]
            moments = {"x_NPC": x, "mean_NC": FLOATS, "std_NC": FLOATS, "P": "i32", "C": width}
            directions = {"rows_NR": x, "directions_NE": FLOATS, "inverse_N": FLOATS, "R": width, "E": "i32:16"}
            directions |= {"rounding": "fp32"}
            backward = {"x_NPC": x, "mean_NC": FLOATS, "slopes_NC": FLOATS, "grad": FLOATS, "dx_NPC": x}
            backward |= {"P": "i32", "C": width, "tiles": "i32"}
            found += [
                Variant(f"similarity_loss moments {word}{end}", moments_kernel, moments, PIXELS),
                Variant(f"similarity_loss directions {word}{end}", directions_kernel, directions, ROW),
                Variant(f"similarity_loss backward {word}{end}", backward_kernel, backward, PIXELS),
            ]
    return found
