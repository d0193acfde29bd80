"""mlaan: the training engine for supervised local learning."""

from mlaan.data import Batch
from mlaan.engine import Engine, Evaluation, StepResult
from mlaan.errors import UserError
from mlaan.learning import DGL, MLAAN, EndToEnd, LocalLoss, Partition, Supervision
from mlaan.models import Backbone

__all__ = [
    "DGL",
    "MLAAN",
    "Backbone",
    "Batch",
    "EndToEnd",
    "Engine",
    "Evaluation",
    "LocalLoss",
    "Partition",
    "StepResult",
    "Supervision",
    "UserError",
]
__version__ = "0.1.0"
