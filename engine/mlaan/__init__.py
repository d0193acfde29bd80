"""mlaan: the training engine for supervised local learning."""

from mlaan.data import Batch
from mlaan.engine import Engine, Evaluation, StepResult
from mlaan.errors import UserError
from mlaan.learning import (
    DGL,
    HPFF,
    MAN,
    MLAAN,
    AugLocal,
    BackLink,
    EndToEnd,
    InfoPro,
    LocalLoss,
    Partition,
    PredSim,
    Site,
    Supervision,
    Twin,
)
from mlaan.models import Backbone

__all__ = [
    "DGL",
    "HPFF",
    "MAN",
    "MLAAN",
    "AugLocal",
    "BackLink",
    "Backbone",
    "Batch",
    "EndToEnd",
    "Engine",
    "Evaluation",
    "InfoPro",
    "LocalLoss",
    "Partition",
    "PredSim",
    "Site",
    "StepResult",
    "Supervision",
    "Twin",
    "UserError",
]
__version__ = "0.1.0"
