"""Settings: frozen dataclasses, read from TOML files and the command line, written back as TOML."""

from mlaan.config.choice import Choice, setting
from mlaan.config.loading import load
from mlaan.config.schema import (
    Config,
    DataConfig,
    MemoryConfig,
    MethodConfig,
    ModelConfig,
    OptimConfig,
    PartitionConfig,
    RunConfig,
    TrainConfig,
)
from mlaan.config.writing import Setting, describe, dumps, make

__all__ = [
    "Choice",
    "Config",
    "DataConfig",
    "MemoryConfig",
    "MethodConfig",
    "ModelConfig",
    "OptimConfig",
    "PartitionConfig",
    "RunConfig",
    "Setting",
    "TrainConfig",
    "describe",
    "dumps",
    "load",
    "make",
    "setting",
]
