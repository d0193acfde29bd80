"""Execute: run a step plan."""

from mlaan.execute.batch import BatchCheck
from mlaan.execute.eager import EagerExecutor
from mlaan.execute.module import Autocast, AutogradModule, Cotangent, ModuleWork
from mlaan.execute.statistics import ModuleState, RandomState

__all__ = [
    "Autocast",
    "AutogradModule",
    "BatchCheck",
    "Cotangent",
    "EagerExecutor",
    "ModuleState",
    "ModuleWork",
    "RandomState",
]
