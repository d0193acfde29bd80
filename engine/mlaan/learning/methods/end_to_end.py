"""End-to-end training as a special case: one loss whose reach is the whole network."""

from dataclasses import dataclass

from mlaan.config import MethodConfig
from mlaan.learning.site import Site
from mlaan.learning.supervision import LocalLoss, Supervision


@dataclass(frozen=True)
class EndToEnd(MethodConfig, name="end_to_end"):
    """Ordinary end-to-end training: one loss, on the classifier, that reaches back through all modules.

    With memory.recompute = "once" the modules are the segments of activation checkpointing.
    """

    def supervise(self, site: Site) -> Supervision:
        """One loss on the last module."""
        loss = LocalLoss(site.modules - 1, site.backbone.classifier, reach=site.modules, kind="classifier")
        return Supervision((loss,))
