"""Decoupled greedy learning (Belilovsky, Eickenberg, Oyallon, ICML 2020): every module has a head of its own."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mlaan.config import MethodConfig, setting
from mlaan.learning.heads import DGLHead, PoolLinear
from mlaan.learning.partition import Partition
from mlaan.learning.supervision import LocalLoss, Supervision
from mlaan.models import Backbone


@dataclass(frozen=True)
class DGL(MethodConfig, name="dgl"):
    """Decoupled greedy learning: every module has a head and a loss of its own.

    min over theta_i, c_i of CE(c_i(f_i(sg h_{i-1})), y) for every module i: reach 1.
    """

    head: Literal["mlp", "light"] = setting("mlp", "mlp: DGL's own head of 1x1 convolutions; light: pool + linear")

    def supervise(self, backbone: Backbone, partition: Partition, shapes: Sequence[Sequence[int]]) -> Supervision:
        """A loss of reach 1 per module, on the backbone's own classifier at the last."""
        losses = []
        for i, shape in enumerate(partition.outputs(shapes)[:-1]):
            light = self.head == "light"
            classes = backbone.num_classes
            head = PoolLinear(shape[0], classes) if light else DGLHead(shape, classes)
            losses.append(LocalLoss(i, head))
        losses.append(LocalLoss(len(partition) - 1, backbone.classifier, kind="classifier"))
        return Supervision(tuple(losses))
