"""Execute: run a step plan."""

from mlaan.execute.batch import BatchCheck
from mlaan.execute.eager import EagerExecutor
from mlaan.execute.executors import Executor, make_executor
from mlaan.execute.fused import FusedModule
from mlaan.execute.graph import GraphExecutor
from mlaan.execute.head_calls import HeadCalls
from mlaan.execute.kernels import choose_kernels, make_work
from mlaan.execute.loss_scale import LossScale
from mlaan.execute.module import Autocast, AutogradModule, ModuleWork, Passed
from mlaan.execute.precision import AUTOCAST, arithmetic, make_autocast, shorten
from mlaan.execute.statistics import ModuleState, RandomState

__all__ = [
    "AUTOCAST",
    "Autocast",
    "AutogradModule",
    "BatchCheck",
    "EagerExecutor",
    "Executor",
    "FusedModule",
    "GraphExecutor",
    "HeadCalls",
    "LossScale",
    "ModuleState",
    "ModuleWork",
    "Passed",
    "RandomState",
    "arithmetic",
    "choose_kernels",
    "make_autocast",
    "make_executor",
    "make_work",
    "shorten",
]
