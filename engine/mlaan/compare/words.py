"""A comparison as lines for a terminal: the table, what it means, and how it was measured."""

import os
from collections.abc import Sequence

from mlaan.compare.candidates import CHECKPOINTED
from mlaan.compare.measure import percentiles
from mlaan.compare.result import Comparison, Row, front
from mlaan.observe.words import aligned, mebibytes

ALIKE = 0.02
"""Relative difference up to which two peaks count as the same."""
NOTEWORTHY = 0.05
"""Share of end-to-end's peak from which on weights that others do not have are spoken of."""

WARNING = (
    "Speed and memory say nothing about accuracy: a local learner may end below end-to-end. Train both on your data "
    "before you choose."
)


def heading(comparison: Comparison) -> str:
    """What is measured, and on what."""
    facts, machine = comparison.facts, comparison.facts["machine"]
    size = "x".join(map(str, facts["input_shape"]))
    device = machine["cpu"] if machine["device"] == "cpu" else machine["gpus"][int(machine["device"].partition(":")[2])]
    layout = ", channels_last" if facts["channels_last"] else ""
    kernels = ", Triton kernels" if machine["kernels"] == "triton" else ""
    lines = [
        f"{facts['model']}, batch {facts['batch']} of {size}, {facts['precision']}{layout}{kernels}, "
        f"on {device}, {machine['threads']} threads, torch {machine['torch']}"
    ]
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    if load > cores / 2:
        lines.append(f"The machine is busy (load {load:.1f} on {cores} cores): expect wide spreads.")
    return "\n".join(lines)


def as_text(comparison: Comparison, sentences: Sequence[str]) -> str:
    """Table, what is missing, what it means, and how it was measured."""
    facts = comparison.facts
    if not comparison.rows:
        return "Nothing was measured."
    unfinished = (
        [] if comparison.finished else ["Stopped early: rows without times, and with fewer rounds, are among these."]
    )
    missing = [f"not measured: {refused.label}: {refused.reason}" for refused in comparison.refused]
    layout = " Images and weights are laid out as channels_last for all." if facts["channels_last"] else ""
    notes = [
        "* on the front: no other row is both as fast and as small. Ratios are to end-to-end. Times are of whole steps "
        f"on random images, their ratios within a round: median, and range over {facts['rounds']} rounds.",
        "Memory is what the allocator handed out during a step above what it found: activations, gradients and "
        "workspace; what stays between steps, weights, twins and momenta, is the column beside it. For its peak end-to-"
        "end updates each weight within the backward, as local learners do, so that it holds no gradients longer than "
        "needed; so does checkpointing, which has the segments of its lowest peak.",
        f"All update by SGD with momentum.{layout}",
        *comparison.notes,
    ]
    return "\n".join([*table(comparison), "", *unfinished, *missing, *sentences, "", *notes])


def table(comparison: Comparison) -> list[str]:
    """The rows by rising memory; a star marks those that no other beats in both memory and time."""
    best = {id(row) for row in front(comparison.rows)}
    lines = [["", "memory", "ratio", "stays", "ms", "img/s", "ratio", "range", "GFLOP", "ratio", "M trained"]]
    names = [""]
    for row in sorted(comparison.rows, key=lambda row: row.memory):
        names.append(row.label)
        time = ["-"] * 4
        if row.time:
            middle = percentiles(row.seconds).median
            spread = f"{row.time.low:.2f}-{row.time.high:.2f}" if row is not comparison.rows[0] else ""
            time = [f"{1e3 * middle:.1f}", f"{comparison.batch / middle:.1f}", f"{row.time.median:.2f}", spread]
        work = [f"{row.flops / 1e9:.1f}", f"{row.work:.2f}", f"{row.parameters / 1e6:.2f}"]
        memory = [mebibytes(row.peak_bytes), f"{row.memory:.2f}", mebibytes(row.held_bytes)]
        lines.append(["*" if id(row) in best else "", *memory, *time, *work])
    width = max(map(len, names))
    return [f"{name:<{width}} {line}" for name, line in zip(names, aligned(lines), strict=True)]


def verdict(comparison: Comparison) -> list[str]:
    """What the figures mean for whoever asked, in plain sentences; the last one warns."""
    rows = comparison.timed()
    local = [row for row in rows if row.candidate.is_local]
    if not local:
        return ["No local learner was timed, so there is nothing to say about them.", WARNING]
    segments = [row for row in rows if row.candidate.family == CHECKPOINTED]
    rival = min(segments, key=lambda row: row.memory, default=None)
    smaller = [row for row in local if row.memory < 1 - ALIKE]
    if not smaller:
        instead = f"; checkpointing {_short(rival)}" if rival else ""
        return [f"No local learner here needs less memory than end-to-end{instead}.", WARNING]
    least = min(row.memory for row in smaller)
    leanest = min((row for row in smaller if row.memory <= least * (1 + ALIKE)), key=_middle)
    said = [_on_memory(leanest, rival)]
    extra = leanest.held_bytes - comparison.rows[0].held_bytes
    if extra > comparison.rows[0].peak_bytes * NOTEWORTHY:
        said.append(f"Between steps its heads and their momenta hold {mebibytes(extra)} more, which is not in that.")
    quickest = min(smaller, key=_middle)
    if quickest is not leanest:
        said.append(f"Fastest of those that save memory, {_long(quickest)}.")
    if pace(quickest) == "faster":
        said.append(f"{quickest.label} is faster than end-to-end itself in every round.")
    if pace(quickest) == "alike":
        said.append(f"{quickest.label} is as fast as end-to-end itself, as far as these rounds tell.")
    families = dict.fromkeys(row.candidate.family for row in local)
    least_of = [
        min((row for row in local if row.candidate.family == each), key=lambda row: row.memory) for each in families
    ]
    others = [f"{row.label} {_pair(row)}" for row in least_of if row.candidate.family != leanest.candidate.family]
    if others:
        said.append(f"The smallest of the other methods: {'; '.join(others)}.")
    return [*said, WARNING]


def _on_memory(leanest: Row, rival: Row | None) -> str:
    """The smallest local learner beside checkpointing, and which to take for memory."""
    if rival is None:
        return f"{_long(leanest)}."
    both = f"{_long(leanest)}; checkpointing {_short(rival)}."
    if leanest.memory < rival.memory * (1 - ALIKE):
        how = {"faster": "and faster than", "slower": "but slower than"}.get(
            pace(leanest, rival), "at about the pace of"
        )
        return f"{both} Local learning is the smallest here, {how} checkpointing."
    size = "smaller" if rival.memory < leanest.memory * (1 - ALIKE) else "as small"
    match pace(rival, leanest):
        case "slower":
            return f"{both} For memory alone take checkpointing; local learning is faster."
        case "faster":
            return f"{both} Take checkpointing: it is {size} and faster."
        case _:
            return f"{both} For memory alone take checkpointing; these rounds do not tell which of the two is faster."


def _long(row: Row) -> str:
    return f"{row.label} takes {row.memory:.2f} of end-to-end's memory at {_middle(row):.2f} times its time"


def _short(row: Row) -> str:
    return f"({row.segments} segments) {_pair(row)}"


def _pair(row: Row) -> str:
    return f"{row.memory:.2f} at {_middle(row):.2f}"


def pace(row: Row, other: Row | None = None) -> str:
    """ "faster", "slower", or "alike" where the spreads of the two ratios overlap; without `other`: than end-to-end."""
    assert row.time is not None
    low, high = (1.0, 1.0) if other is None else _ends(other)
    return "faster" if row.time.high < low else "slower" if row.time.low > high else "alike"


def _ends(row: Row) -> tuple[float, float]:
    assert row.time is not None
    return row.time.low, row.time.high


def _middle(row: Row) -> float:
    assert row.time is not None
    return row.time.median
