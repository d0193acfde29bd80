"""Light heads in one call of fused kernels."""

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from mlaan.execute.heads import HeadResult, accumulate
from mlaan.learning import LocalLoss, pool_linear
from mlaan_kernels.blocks import Cotangent
from mlaan_kernels.pool_linear_ce import HeadResults, pool_linear_ce


def run_light_heads(
    losses: Sequence[LocalLoss], outputs: Mapping[int, Tensor], pooled: Mapping[int, Tensor], labels: Tensor
) -> list[HeadResult]:
    """Light heads of equal shape (`learning.light_shape`) in one call; arguments as `HeadCalls.run`."""
    tapped = sorted({loss.module for loss in losses})
    features = [pooled.get(module, outputs[module]) for module in tapped]
    taps, weights = [tapped.index(loss.module) for loss in losses], [loss.weight for loss in losses]
    found = light_results([loss.head for loss in losses], features, taps, weights, labels)
    rows = zip(found.losses, found.top1, found.pooled_grads, strict=True)
    return [HeadResult(value, correct, Cotangent(pooled=grad)) for value, correct, grad in rows]


def _exact(weight: Tensor | None) -> Tensor | None:
    """In float32 where it is held in bfloat16: the operator takes that of features in lower precision."""
    return weight.float() if weight is not None and weight.dtype == torch.bfloat16 else weight


def light_results(
    heads: Sequence[nn.Module],
    features: Sequence[Tensor],
    taps: Sequence[int],
    weights: Sequence[float],
    labels: Tensor,
) -> HeadResults:
    """Losses and gradients of pool and linear layers; those of the layers' weights go to `.grad`.

    Args:
        heads: `learning.pool_linear` knows them.
        features: (N, C, H, W) or (N, C).
        taps: for each head the feature that it reads.
        weights: for each head its loss's.
    """
    linears = [cast(nn.Linear, pool_linear(head)) for head in heads]
    matrices, biases = ([_exact(getattr(layer, name)) for layer in linears] for name in ("weight", "bias"))
    found = pool_linear_ce(features, taps, cast(list[Tensor], matrices), biases, labels, weights)
    for i, layer in enumerate(linears):
        grads = {"weight": found.weight_grads[i], "bias": None if found.bias_grads is None else found.bias_grads[i]}
        for name, weight in layer.named_parameters():
            if weight.requires_grad:
                accumulate(weight, grads[name])
    return found
