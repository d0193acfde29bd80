"""Leap networks by fused kernels: a block beside its twin, and those of several modules, as one of more channels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mlaan.execute.heads import HeadResult, accumulate
from mlaan.execute.light import light_results
from mlaan.learning import LeapNetwork, LocalLoss, light_shape
from mlaan_kernels.blocks import Chain, Cotangent, Settings, backward, make_chain


class FusedLeaps:
    """Leap networks alike that run as one, each on its module's output; or one that several modules share.

    Their outputs lie side by side as channels; a shared one's lie one after the other in the batch, each with batch
    statistics of its own.

    Args:
        heads: one, or several alike.
        chains: what their blocks, and the twins beside them, make together.
    """

    def __init__(self, heads: Sequence[LeapNetwork], chains: Sequence[Chain]) -> None:
        self.heads, self.chains = heads, chains
        # a borrowed block gets no gradient from the head that runs it
        self.trained = not heads[0].borrowed
        self.head_of = {weight: place for place, head in enumerate(heads) for weight in head.parameters()}

    @classmethod
    def of(cls, losses: Sequence[LocalLoss], settings: Settings) -> FusedLeaps | None:
        """For losses whose Heads share a call; None where a head is no leap network that has fused kernels."""
        unique = list({id(loss.head): loss.head for loss in losses}.values())
        heads = [head for head in unique if isinstance(head, LeapNetwork)]
        light = all(light_shape(losses[0], head.head) for head in heads)
        if len(heads) < len(unique) or not light or len(unique) not in (1, len(losses)):
            return None
        chains = []
        for t in range(len(heads[0].borrowed or heads[0].blocks)):
            members = [_members(head, t) for head in heads]
            blocks = [block for some in members for block in some]
            chains.append(make_chain(blocks, settings, inputs=len(heads), members=len(members[0])))
        return None if None in chains or not chains else cls(heads, cast(list[Chain], chains))

    @torch.no_grad()
    def run(
        self,
        losses: Sequence[LocalLoss],
        outputs: Sequence[Tensor],
        labels: Tensor,
        scales: Sequence[Tensor] | None = None,
    ) -> list[HeadResult]:
        """Forward and backward in one go; the weights' gradients go to `.grad`.

        Args:
            losses: one for each output.
            outputs: (N, C, H, W) of the tapped modules, all of one shape.
            scales: for each loss the factor, 0-dim, of the cotangent that comes back; equal where a head is shared.
        """
        shared, count = len(self.heads) == 1, len(outputs)
        along = 0 if shared else 1
        taps = [F.avg_pool2d(z, 2, ceil_mode=True) if self.heads[0].pooled else z for z in outputs]
        x = torch.cat(taps, along) if count > 1 else taps[0]
        saved: list[Any] = []
        pooled = None
        for chain in self.chains:
            last = chain is self.chains[-1]
            x, kept, pooled = chain.forward(x, True, last, write=not last, slices=count if shared else 1)
            saved.append(kept)
        assert pooled is not None
        features = [part.to(saved[0].x.dtype).contiguous() for part in pooled.chunk(count, along)]
        linears = [cast(LeapNetwork, loss.head).head for loss in losses]
        found = light_results(linears, features, range(count), [loss.weight for loss in losses], labels)
        arriving = list(found.pooled_grads)
        if scales is not None:
            arriving = [grad * scale for grad, scale in zip(arriving, scales, strict=True)]
        cotangent = Cotangent(pooled=torch.cat(arriving, along))
        for chain in reversed(self.chains):
            inputs, grads = backward(chain, saved.pop(), [cotangent], [True], self.trained)
            cotangent = cast(Cotangent, inputs[0])
            for weight, grad in grads.items():
                accumulate(weight, grad if scales is None else grad / scales[self.head_of[weight]])
        assert cotangent.dense is not None
        parts = [_spread(part, z) for part, z in zip(cotangent.dense.chunk(count, along), outputs, strict=True)]
        rows = zip(found.losses, found.top1, parts, strict=True)
        return [HeadResult(value, correct, Cotangent(dense=part)) for value, correct, part in rows]


def _members(head: LeapNetwork, t: int) -> list[nn.Module]:
    """A head's t-th block and the twin beside it, if there is one."""
    block = head.borrowed[t] if head.borrowed else head.blocks[t]
    return [block, *([head.twins[str(t)]] if str(t) in head.twins else [])]


def _spread(grad: Tensor, z: Tensor) -> Tensor:
    """Gradient of z where `grad` is that of z averaged 2 x 2, or of z itself."""
    if grad.shape == z.shape:
        return grad
    run = torch.ops.aten.avg_pool2d_backward.default
    like = z.to(grad.dtype)
    return run(grad.contiguous(memory_format=torch.channels_last), like, [2, 2], [2, 2], [0, 0], True, True, None)
