"""How a training step is measured; `mlaan compare` measures by the same means."""

from mlaan.compare.measure import (
    Batch,
    MemoryEvent,
    Spread,
    Step,
    flops,
    highest_level,
    interleaved,
    paired_ratios,
    peak_memory,
    percentiles,
)

__all__ = [
    "Batch",
    "MemoryEvent",
    "Spread",
    "Step",
    "flops",
    "highest_level",
    "interleaved",
    "paired_ratios",
    "peak_memory",
    "percentiles",
]
