"""mlaan: the training engine for supervised local learning.

What is named here is imported when it is first used: `mlaan --help` and a Ctrl-C need not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mlaan.errors import UserError

if TYPE_CHECKING:
    from mlaan.config import AdamWConfig, LAMBConfig, LARSConfig, SGDConfig
    from mlaan.data import Batch
    from mlaan.engine import Engine, Evaluation, StepResult
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
    "AdamWConfig",
    "AugLocal",
    "BackLink",
    "Backbone",
    "Batch",
    "EndToEnd",
    "Engine",
    "Evaluation",
    "InfoPro",
    "LAMBConfig",
    "LARSConfig",
    "LocalLoss",
    "Partition",
    "PredSim",
    "SGDConfig",
    "Site",
    "StepResult",
    "Supervision",
    "Twin",
    "UserError",
]
__version__ = "0.1.0"

_PLACES = {"Backbone": "models", "Batch": "data", "Engine": "engine", "Evaluation": "engine", "StepResult": "engine"}
_PLACES |= dict.fromkeys(("AdamWConfig", "LAMBConfig", "LARSConfig", "SGDConfig"), "config")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'mlaan' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"mlaan.{_PLACES.get(name, 'learning')}"), name)
    return value
