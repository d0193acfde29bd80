"""Likeness of representations: linear centred kernel alignment (Kornblith, Norouzi, Lee, Hinton 2019)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def linear_cka(x: Tensor, y: Tensor) -> float:
    """Linear CKA of features x (N, C) and y (N, D) of the same N images, 0 to 1; nan where one never varies.

    With columns centred, ||xᵀy||² / (||xᵀx|| · ||yᵀy||) in Frobenius norms (section 3 there): the ratio of the biased
    estimates of HSIC, tr(K L) / (N - 1)², whose factors cancel. Unmoved by rotations of either feature space and by
    scale, not by any invertible map. The estimate's bias is upward: unrelated isotropic features have about
    √(C·D) / N in place of 0, so N should be well above the number of features.
    """
    return cka_matrix([x], [y])[0][0]


def cka_matrix(xs: Sequence[Tensor], ys: Sequence[Tensor]) -> list[list[float]]:
    """`linear_cka` of each of xs, by row, with each of ys, by column; all have the same images in the same order.

    Raises:
        ValueError: different numbers of images.
    """
    if len({len(features) for features in (*xs, *ys)}) > 1:
        raise ValueError(f"features of {len(xs[0])} and {len(ys[0])} images cannot be compared")
    rows, columns = ([_prepared(features) for features in some] for some in (xs, ys))
    return [[_alignment(x, y) for y in columns] for x in rows]


def _prepared(features: Tensor) -> Tensor | None:
    """Centred, and scaled so that ||xᵀx|| = 1; None where nothing varies."""
    x = features.double()
    x = x - x[0]  # exact zeros where a feature never varies
    x -= x.mean(0)
    size = x.norm()
    if size == 0:
        return None
    x /= size
    return x / _product(x, x).norm().sqrt()


def _alignment(x: Tensor | None, y: Tensor | None) -> float:
    if x is None or y is None:
        return math.nan
    if x.shape[1] * y.shape[1] <= len(x) ** 2:
        return _product(x, y).square().sum().item()
    # ||xᵀy||² = <x xᵀ, y yᵀ>: the smaller matrices where there are more features than images
    return (_product(x.T, x.T) * _product(y.T, y.T)).sum().item()


def _product(x: Tensor, y: Tensor) -> Tensor:
    return torch.mm(x.T, y)
