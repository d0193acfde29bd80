"""End-to-end training as a special case: one loss whose reach is the whole network."""

from collections.abc import Sequence
from dataclasses import dataclass

from mlaan.config import MethodConfig
from mlaan.learning.partition import Partition
from mlaan.learning.supervision import LocalLoss, Supervision
from mlaan.models import Backbone


@dataclass(frozen=True)
class EndToEnd(MethodConfig, name="end_to_end"):
    """Ordinary end-to-end training: one loss, on the classifier, that reaches back through all modules.

    With memory.recompute = "once" the modules are the segments of activation checkpointing.
    """

    def supervise(self, backbone: Backbone, partition: Partition, shapes: Sequence[Sequence[int]]) -> Supervision:
        """One loss on the last module."""
        last = len(partition) - 1
        return Supervision((LocalLoss(last, backbone.classifier, reach=len(partition), kind="classifier"),))
