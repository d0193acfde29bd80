"""Heads alike: those that can run in one call."""

from collections.abc import Sequence
from typing import cast

from torch import nn

from mlaan.learning.heads import pool_linear
from mlaan.learning.leap import LeapNetwork
from mlaan.learning.supervision import LocalLoss, cross_entropy
from mlaan_kernels.blocks import form


def light_shape(loss: LocalLoss, head: nn.Module | None = None) -> tuple[int, int, bool] | None:
    """Width, classes and whether there is a bias, for a loss that is cross-entropy on a pool and linear layer.

    Args:
        head: to look at in place of the loss's own.
    """
    linear = pool_linear(head or loss.head) if loss.criterion is cross_entropy else None
    return None if linear is None else (linear.in_features, linear.out_features, linear.bias is not None)


def head_forms(losses: Sequence[LocalLoss]) -> list[object]:
    """For each loss a key; Heads of one key can run in one call.

    Light heads go by their shape. Leap networks of one loss each, with a light head behind them, go by what they are
    made of. All others go by the network itself.
    """
    uses = [id(loss.head) for loss in losses]
    return [light_shape(loss) or _leap_form(loss, uses.count(id(loss.head))) or id(loss.head) for loss in losses]


def _leap_form(loss: LocalLoss, uses: int) -> object:
    if not isinstance(loss.head, LeapNetwork) or uses > 1:
        return None
    light = light_shape(loss, loss.head.head)
    blocks = (*loss.head.borrowed, *cast(list[nn.Module], loss.head.blocks), *loss.head.twins.values())
    shape = (tuple(loss.head.twins), loss.head.pooled, bool(loss.head.borrowed))
    return None if light is None else ("leap", light, shape, *map(form, blocks))
