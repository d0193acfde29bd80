"""Learning: where a backbone is cut, and which local losses each module gets."""

from typing import Protocol

from mlaan.learning.alike import head_forms, light_shape
from mlaan.learning.heads import PoolLinear, pool_linear
from mlaan.learning.leap import LeapNetwork
from mlaan.learning.methods import DGL, HPFF, MAN, MLAAN, AugLocal, BackLink, EndToEnd, InfoPro, PredSim
from mlaan.learning.partition import Partition, cut
from mlaan.learning.site import Normalisation, Site
from mlaan.learning.supervision import Criterion, LocalLoss, Supervision, Twin, cross_entropy, logits_of

__all__ = [
    "DGL",
    "HPFF",
    "MAN",
    "MLAAN",
    "AugLocal",
    "BackLink",
    "Criterion",
    "EndToEnd",
    "InfoPro",
    "LeapNetwork",
    "LocalLoss",
    "Method",
    "Normalisation",
    "Partition",
    "PoolLinear",
    "PredSim",
    "Site",
    "Supervision",
    "Twin",
    "cross_entropy",
    "cut",
    "head_forms",
    "light_shape",
    "logits_of",
    "pool_linear",
]


class Method(Protocol):
    """What a method is: a way to put local losses on a partition."""

    def supervise(self, site: Site) -> Supervision:
        """The supervision of the site's partition."""
        ...
