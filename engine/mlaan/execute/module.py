"""One protocol for a module's work, first over autograd for any nn.Module."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from mlaan_kernels.blocks import Cotangent


class Passed(NamedTuple):
    """What a module's forward gives: its output y, what the backward needs or None, and where it was asked for and came
    with the pass the mean of y over its pixels (N, C)."""

    y: Tensor
    saved: Any
    pooled: Tensor | None = None


class ModuleWork(Protocol):
    """The work of one local module, over autograd for any or by fused kernels."""

    @property
    def weights(self) -> Sequence[nn.Parameter]:
        """The weights that `backward` gives gradients for, in order."""
        ...

    def forward(self, x: Tensor, keep: bool, pool: bool = False) -> Passed:
        """Run the module on x. No autograd graph leaves through the output.

        Args:
            keep: whether a backward follows.
            pool: the mean of y is wanted too, if it can be had in the same pass.
        """
        ...

    def backward(
        self, saved: Any, cotangents: Sequence[Cotangent], need_input: Sequence[bool], need_weight: bool, keep: bool
    ) -> tuple[list[Tensor | None], list[Tensor | None]]:
        """Carry cotangents through the module.

        Args:
            saved: as `forward` gave it.
            cotangents: groups kept apart.
            need_input: for each group, whether its cotangent at the input is wanted.
            need_weight: whether the weight gradients for the sum of all groups are wanted.
            keep: whether `saved` serves another pass after this one; else it may be taken apart.

        Returns:
            For each group the cotangent at x, or None; for each weight its gradient, or None where it got none.
        """
        ...


Autocast = Callable[[], AbstractContextManager[Any]]
"""Gives a context in which operators run in a lower precision."""


class AutogradModule:
    """A module's work over torch.autograd, in the precision that `autocast` sets.

    Propagate does no weight work because native operators skip what is not asked for. Custom operators and compiled
    modules would do it all the same.
    """

    def __init__(self, module: nn.Module, autocast: Autocast = nullcontext) -> None:
        self.module, self.autocast = module, autocast
        self.weights: list[nn.Parameter] = [p for p in module.parameters() if p.requires_grad]

    def forward(self, x: Tensor, keep: bool, pool: bool = False) -> Passed:
        """See ModuleWork. `saved` is the detached input and the output with its graph."""
        x = x.detach()
        with torch.set_grad_enabled(keep), self.autocast():
            if keep and x.is_floating_point():
                x.requires_grad_()
            y = self.module(x)
        return Passed(y.detach(), (x, y) if keep else None)

    def backward(
        self,
        saved: tuple[Tensor, Tensor],
        cotangents: Sequence[Cotangent],
        need_input: Sequence[bool],
        need_weight: bool,
        keep: bool,
    ) -> tuple[list[Tensor | None], list[Tensor | None]]:
        """See ModuleWork. One group that goes on and gives weight gradients is one ordinary backward."""
        x, y = saved
        one_pass = need_weight and len(cotangents) == 1 and need_input[0]
        inputs: list[Tensor | None] = [None] * len(cotangents)
        wanted = [i for i, need in enumerate(need_input) if need and not one_pass]
        for place in wanted:
            retain = keep or need_weight or place != wanted[-1]
            inputs[place] = torch.autograd.grad(y, [x], cotangents[place].like(y), retain_graph=retain)[0]
        if not need_weight:
            return inputs, []
        total = cotangents[0]
        for cotangent in cotangents[1:]:
            total = total + cotangent
        targets = [*([x] if one_pass else []), *self.weights]
        grads: list[Tensor | None] = [None] * len(targets)
        if targets and y.requires_grad:
            grads = list(torch.autograd.grad(y, targets, total.like(y), retain_graph=keep, allow_unused=True))
        if one_pass:
            inputs[0] = grads.pop(0)
        return inputs, grads
