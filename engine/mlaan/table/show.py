"""Ours beside the published: the table as text and as data."""

from collections.abc import Sequence
from statistics import mean, stdev
from typing import Any

from mlaan.table.rows import Published
from mlaan.table.runs import Run

NOTES = {
    "ours": "top-1 error of the exported backbone after the last epoch (never the best epoch)",
    "spread": "the standard deviation over n seeds",
    "(n)": "quoted from a secondary source, not from the method's own authors",
}


def as_data(runs: Sequence[Run], changed: Sequence[str] = ()) -> list[dict[str, Any]]:
    """One entry per row, in the order of their first run.

    `changed` are the settings that make the runs another recipe than their files': then no published figure stands
    beside them. error and spread are in percent and None without enough finished runs; images_per_second and seconds
    are means over the finished runs.
    """
    by_row: dict[str, list[Run]] = {}
    for run in runs:
        by_row.setdefault(run.row.label, []).append(run)
    return [_row(label, group, Published() if changed else group[0].row.published) for label, group in by_row.items()]


def _row(label: str, runs: Sequence[Run], published: Published) -> dict[str, Any]:
    row = runs[0].row
    seeds = {run.seed: _seed(run) for run in runs}
    finished = [seed for seed in seeds.values() if seed["state"] == "finished"]
    errors = [100 * (1 - seed["test_top1"]) for seed in finished]
    return {
        "row": label,
        "config": str(row.file),
        "published_error": published.error,
        "published_memory_gb": published.memory_gb,
        "source": published.source,
        "secondary": published.secondary,
        "error": mean(errors) if errors else None,
        "spread": stdev(errors) if len(errors) > 1 else None,
        "n": len(errors),
        "epochs": row.config.train.epochs,
        "images_per_second": mean(seed["images_per_second"] for seed in finished) if finished else None,
        "seconds": mean(seed["seconds"] for seed in finished) if finished else None,
        "memory_bytes": max((seed["memory_bytes"] for seed in finished), default=None),
        "seeds": seeds,
    }


def _seed(run: Run) -> dict[str, Any]:
    """What one run has reached; accuracies from 0 to 1, of its last test, None before the first."""
    epochs = run.epochs()
    last = epochs[-1] if epochs else {}
    tested = next((epoch for epoch in reversed(epochs) if "test_top1" in epoch), {})
    speeds = [epoch["images_per_second"] for epoch in epochs]
    return {
        "folder": str(run.folder.path),
        "state": run.state(),
        "epoch": last.get("epoch", 0),
        "test_top1": tested.get("test_top1"),
        "best_top1": tested.get("best_top1"),
        "images_per_second": mean(speeds) if speeds else None,
        "seconds": last.get("seconds", 0.0),
        "memory_bytes": last.get("memory_bytes"),
    }


def as_text(rows: Sequence[dict[str, Any]], changed: Sequence[str] = ()) -> str:
    """The table of `as_data`'s rows, with the words it needs below it; `changed` as there."""
    cells = [["row", "published %", "ours %", "n", "epochs", "img/s", "so far"]]
    cells += [_cells(row) for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for first, *rest in cells:
        others = [f"{cell:>{width}}" for cell, width in zip(rest, widths[1:], strict=True)]
        lines.append("  ".join([f"{first:<{widths[0]}}", *others]).rstrip())
    notes = {"ours": f"{NOTES['ours']}; ± is {NOTES['spread']}"}
    if any(row["secondary"] for row in rows):
        notes["(n)"] = NOTES["(n)"]
    if changed:
        notes["-"] = f"published figures are left out: these runs have settings of their own, {', '.join(changed)}"
    return "\n".join([*lines, "", *(f"{name:<4}  {text}" for name, text in notes.items())])


def _cells(row: dict[str, Any]) -> list[str]:
    published = "-" if row["published_error"] is None else f"{row['published_error']:.2f}"
    ours = "-" if row["error"] is None else f"{row['error']:.2f}"
    if row["spread"] is not None:
        ours += f" ± {row['spread']:.2f}"
    return [
        row["row"],
        published + (" (n)" if row["secondary"] else ""),
        ours,
        str(row["n"]),
        str(row["epochs"]),
        "-" if row["images_per_second"] is None else f"{row['images_per_second']:.0f}",
        _so_far(row),
    ]


def _so_far(row: dict[str, Any]) -> str:
    """Empty once every seed is finished."""
    left = [seed for seed in row["seeds"].values() if seed["state"] != "finished"]
    begun = sum(seed["state"] == "stopped" for seed in left)
    words = [f"{begun} begun"] if begun else []
    if len(left) > begun:
        words.append(f"{len(left) - begun} missing")
    return ", ".join(words)
