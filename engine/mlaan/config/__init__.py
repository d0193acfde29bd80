"""Settings: frozen dataclasses, read from TOML files and the command line, written back as TOML."""

from mlaan.config.choice import Choice, setting
from mlaan.config.loading import load, loads
from mlaan.config.optim import AdamWConfig, LAMBConfig, LARSConfig, OptimConfig, SGDConfig
from mlaan.config.schema import (
    Config,
    DataConfig,
    MemoryConfig,
    MethodConfig,
    ModelConfig,
    PartitionConfig,
    RunConfig,
    TrainConfig,
)
from mlaan.config.sizes import bytes_of, gib
from mlaan.config.writing import Setting, describe, dumps, make

__all__ = [
    "AdamWConfig",
    "Choice",
    "Config",
    "DataConfig",
    "LAMBConfig",
    "LARSConfig",
    "MemoryConfig",
    "MethodConfig",
    "ModelConfig",
    "OptimConfig",
    "PartitionConfig",
    "RunConfig",
    "SGDConfig",
    "Setting",
    "TrainConfig",
    "bytes_of",
    "describe",
    "dumps",
    "gib",
    "load",
    "loads",
    "make",
    "setting",
]
