"""Decoupled greedy learning (Belilovsky, Eickenberg, Oyallon, ICML 2020): every module has a head of its own."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mlaan.config import MethodConfig, setting
from mlaan.learning.base import Auxiliary, Light, local_losses
from mlaan.learning.heads import DGLHead
from mlaan.learning.site import Site
from mlaan.learning.supervision import Supervision


@dataclass(frozen=True)
class DGL(MethodConfig, name="dgl"):
    """Decoupled greedy learning: every module has a head and a loss of its own.

    min over theta_i, c_i of CE(c_i(f_i(sg h_{i-1})), y) for every module i: reach 1.
    """

    head: Literal["mlp", "light"] = setting("mlp", "mlp: DGL's own head of 1x1 convolutions; light: pool + linear")

    def supervise(self, site: Site) -> Supervision:
        """A loss of reach 1 per module, on the backbone's own classifier at the last."""
        return Supervision(local_losses(site, self))

    def auxiliary(self, site: Site, module: int, shape: Sequence[int]) -> Auxiliary:
        """See Base."""
        if self.head == "light":
            return Light().auxiliary(site, module, shape)
        return Auxiliary(DGLHead(shape, site.classes))
