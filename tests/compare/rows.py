"""Rows with made-up figures."""

from dataclasses import replace
from typing import Any

from mlaan.cli.settings import load_config
from mlaan.compare.candidates import CHECKPOINTED, PLAIN, Candidate
from mlaan.compare.result import Comparison, Row

CONFIG = load_config(None, [])
FACTS: dict[str, Any] = {
    "model": "resnet18",
    "input_shape": [3, 64, 64],
    "batch": 32,
    "precision": "float32",
    "channels_last": False,
    "rounds": 3,
    "machine": {"cpu": "a processor", "gpus": [], "device": "cpu", "threads": 2, "torch": "2", "kernels": "reference"},
}


def row(family: str, memory: float, *times: float, modules: int = 0, schedule: str = "lean") -> Row:
    """A row of `memory` MiB whose steps took `times` of end-to-end's in three rounds; one time stands for all three."""
    config = replace(CONFIG, partition=replace(CONFIG.partition, modules=modules or 4))
    config = replace(config, memory=replace(config.memory, schedule=schedule, window=2 * (schedule == "windowed")))
    seconds = list(times) * (3 if len(times) == 1 else 1)
    segments = 5 if family == CHECKPOINTED else None
    peak = round(memory * 2**20)
    return Row(Candidate(family, config), segments, peak, 2**20, 10**9, 10**6, seconds, [1.0] * len(seconds))


def comparison(*rows: Row) -> Comparison:
    """End-to-end of 100 MiB and the given rows."""
    found = Comparison(FACTS, 32, finished=True)
    for each in (row(PLAIN, 100, 1.0), *rows):
        found.add(each)
    return found
