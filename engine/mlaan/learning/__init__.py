"""Learning: where a backbone is cut, and which local losses each module gets."""

from collections.abc import Sequence
from typing import Protocol

from mlaan.learning.heads import PoolLinear
from mlaan.learning.methods import DGL, MLAAN, EndToEnd
from mlaan.learning.partition import Partition, cut
from mlaan.learning.supervision import Criterion, LocalLoss, Supervision, Twin, cross_entropy
from mlaan.models import Backbone

__all__ = [
    "DGL",
    "MLAAN",
    "Criterion",
    "EndToEnd",
    "LocalLoss",
    "Method",
    "Partition",
    "PoolLinear",
    "Supervision",
    "Twin",
    "cross_entropy",
    "cut",
]


class Method(Protocol):
    """What a method is: a way to put local losses on a partition."""

    def supervise(self, backbone: Backbone, partition: Partition, shapes: Sequence[Sequence[int]]) -> Supervision:
        """The supervision of `partition`; `shapes` are those of every block's output, (C, H, W)."""
        ...
