"""Execute: run a step plan."""

from mlaan.execute.batch import BatchCheck
from mlaan.execute.eager import EagerExecutor
from mlaan.execute.fused import FusedModule
from mlaan.execute.head_calls import HeadCalls
from mlaan.execute.kernels import choose_kernels, make_work
from mlaan.execute.module import Autocast, AutogradModule, ModuleWork, Passed
from mlaan.execute.statistics import ModuleState, RandomState

__all__ = [
    "Autocast",
    "AutogradModule",
    "BatchCheck",
    "EagerExecutor",
    "FusedModule",
    "HeadCalls",
    "ModuleState",
    "ModuleWork",
    "Passed",
    "RandomState",
    "choose_kernels",
    "make_work",
]
