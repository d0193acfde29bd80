"""Bases: a method's own auxiliary classifier, on which the methods that only arrange losses can stand."""

from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol, cast

from torch import nn

from mlaan.config import MethodConfig
from mlaan.learning.heads import PoolLinear
from mlaan.learning.site import Site
from mlaan.learning.supervision import Criterion, LocalLoss, cross_entropy

BaseName = Literal["light", "dgl", "predsim", "infopro", "auglocal"]


class Auxiliary(NamedTuple):
    """A head and its loss; `predicts` tells whether the head's output holds logits."""

    head: nn.Module
    criterion: Criterion = cross_entropy
    predicts: bool = True


class Base(Protocol):
    """What builds the auxiliary classifier of a module."""

    def auxiliary(self, site: Site, module: int, shape: Sequence[int]) -> Auxiliary:
        """The classifier of local module `module`, for features of `shape`: its output, or a leap network's."""
        ...


class Light:
    """Pool and one linear layer, cross-entropy."""

    def auxiliary(self, site: Site, module: int, shape: Sequence[int]) -> Auxiliary:
        """See Base."""
        return Auxiliary(PoolLinear(channels(shape), site.classes))


def channels(shape: Sequence[int]) -> int:
    """C of a map (C, H, W) or of tokens (T, C)."""
    return shape[0] if len(shape) == 3 else shape[-1]


def base_named(name: BaseName) -> Base:
    """The method of that name, with its default settings, as a base."""
    return Light() if name == "light" else cast(Base, MethodConfig.make(name))


def local_losses(site: Site, base: Base, reach: int = 1) -> tuple[LocalLoss, ...]:
    """One loss per module, all of one reach; at the last module it sits on the backbone's own classifier."""
    losses = [
        LocalLoss(i, head, reach, kind="local", criterion=criterion, predicts=predicts)
        for i, shape in enumerate(site.outputs[:-1])
        for head, criterion, predicts in [base.auxiliary(site, i, shape)]
    ]
    return (*losses, LocalLoss(site.modules - 1, site.backbone.classifier, reach, kind="classifier"))
