"""The gradient that comes in at a module's output."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Cotangent:
    """Gradient of some losses with respect to a module's output y.

    Attributes:
        dense: shaped like y, or None.
        pooled: (N, C), the gradient with respect to the mean of y over its pixels or tokens, or None: what a
            pooling head gives, never spread out by itself.
    """

    dense: Tensor | None = None
    pooled: Tensor | None = None

    def __add__(self, other: Cotangent) -> Cotangent:
        return Cotangent(_add(self.dense, other.dense), _add(self.pooled, other.pooled))

    def scaled(self, factor: Tensor | None) -> Cotangent:
        """This, times a 0-dim float32 tensor; itself where there is none.

        In float32, for the factor may be beyond float16 while the product is not.
        """
        if factor is None:
            return self
        dense, pooled = (
            None if part is None else (part.to(torch.promote_types(part.dtype, torch.float32)) * factor).to(part.dtype)
            for part in (self.dense, self.pooled)
        )
        return Cotangent(dense, pooled)

    def like(self, y: Tensor) -> Tensor:
        """The whole cotangent in the shape of y, (N, C, H, W) or (N, T, C)."""
        if self.pooled is None:
            assert self.dense is not None
            return self.dense
        if y.ndim == 4:
            spread = (self.pooled / (y.shape[2] * y.shape[3]))[:, :, None, None]
        else:
            spread = (self.pooled / y.shape[1])[:, None]
        return spread.expand_as(y) if self.dense is None else self.dense + spread


def _add(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return a if b is None else b if a is None else a + b
