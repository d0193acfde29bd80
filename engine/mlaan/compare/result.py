"""What was measured, as rows and as data."""

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from mlaan.compare.candidates import PLAIN, Candidate, Refused
from mlaan.compare.measure import Spread, paired_ratios, percentiles
from mlaan.config import dumps


@dataclass
class Row:
    """One candidate's figures.

    Attributes:
        segments: of a checkpointed one.
        peak_bytes: of a step, above what it found.
        held_bytes: of weights, twins, buffers and momenta, which stay between steps.
        flops: of a step.
        parameters: weights that a gradient moves, those of auxiliary networks included.
        seconds: of a step, round by round; empty until it was timed.
        reference: of end-to-end's step in the same rounds.
    """

    candidate: Candidate
    segments: int | None
    peak_bytes: int
    held_bytes: int
    flops: int
    parameters: int
    seconds: list[float] = field(default_factory=list)
    reference: list[float] = field(default_factory=list)
    memory: float = 1.0
    """peak_bytes over end-to-end's."""
    work: float = 1.0
    """flops over end-to-end's."""

    @property
    def label(self) -> str:
        """The candidate's, with the segments."""
        return f"{self.candidate.label} ({self.segments} segments)" if self.segments else self.candidate.label

    @property
    def time(self) -> Spread | None:
        """Seconds of a step over end-to-end's, paired within the rounds: least, median, greatest; None: not timed."""
        return paired_ratios(self.seconds, self.reference) if self.seconds else None


@dataclass
class Comparison:
    """All rows, end-to-end's first, what could not be measured, and how it was done.

    Attributes:
        notes: what a reader must know beside the figures, a sentence each.
        finished: whether everything that was asked for was done.
    """

    facts: dict[str, Any]
    batch: int
    rows: list[Row] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    finished: bool = False

    def add(self, row: Row) -> None:
        """Takes a row in; ratios are to the first one, end-to-end."""
        self.rows.append(row)
        first = self.rows[0]
        assert first.candidate.family == PLAIN
        row.memory, row.work = row.peak_bytes / first.peak_bytes, row.flops / first.flops

    def timed(self) -> list[Row]:
        return [row for row in self.rows if row.seconds]


def front(rows: Sequence[Row]) -> list[Row]:
    """The timed rows, by rising memory, that no other is both as fast and as small as, and better in one of the two."""
    best: list[Row] = []
    for row in sorted((row for row in rows if row.time), key=lambda row: (row.memory, _median(row))):
        if not best or _median(row) < _median(best[-1]):
            best.append(row)
    return best


def _median(row: Row) -> float:
    assert row.time is not None
    return row.time.median


def as_data(comparison: Comparison, verdict: Sequence[str]) -> dict[str, Any]:
    """What compare.json holds: bytes, seconds, and ratios to end-to-end."""
    best = {id(row) for row in front(comparison.rows)}
    return {
        **comparison.facts,
        "finished": comparison.finished,
        "verdict": list(verdict),
        "notes": comparison.notes,
        "rows": [_row(row, comparison.batch, id(row) in best) for row in comparison.rows],
        "refused": [{"label": refused.label, "reason": refused.reason} for refused in comparison.refused],
    }


def _row(row: Row, batch: int, on_front: bool) -> dict[str, Any]:
    candidate, time = row.candidate, row.time
    local = candidate.is_local
    return {
        "label": row.label,
        "family": candidate.family,
        "fused": candidate.fused,
        "modules": candidate.config.partition.modules if local else None,
        "schedule": candidate.config.memory.schedule if local else None,
        "window": candidate.config.memory.window if local else None,
        "recompute": candidate.config.memory.recompute if local else None,
        "method": tomllib.loads(dumps(candidate.config))["method"] if local else None,
        "segments": row.segments,
        "peak_bytes": row.peak_bytes,
        "memory_ratio": row.memory,
        "held_bytes": row.held_bytes,
        "seconds": row.seconds,
        "end_to_end_seconds": row.reference,
        "images_per_second": batch / percentiles(row.seconds).median if time else None,
        "time_ratio": time._asdict() if time else None,
        "flops": row.flops,
        "flops_ratio": row.work,
        "parameters": row.parameters,
        "pareto": on_front,
    }
