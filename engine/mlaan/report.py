"""What a finished, stopped or running run has reached: a table, and a picture of its course."""

import importlib.util
import math
import tomllib
from pathlib import Path
from typing import Any

from mlaan.errors import UserError
from mlaan.observe.metrics import read_epochs
from mlaan.observe.words import aligned, by_module, duration, kinds, mebibytes, percent
from mlaan.run_folder import RunFolder


def summary(folder: RunFolder) -> str:
    """A table of the last epoch's training losses and accuracies by module, and the run's results below it.

    Raises:
        UserError: the run has not finished an epoch yet.
    """
    epochs = _epochs(folder)
    last = epochs[-1]
    tested = next((epoch for epoch in reversed(epochs) if "test_top1" in epoch), None)
    losses, top1 = by_module(last["losses"]), by_module(last["top1"])
    names = kinds(last["losses"])
    rows = [["module", *(f"{kind} {what}" for kind in names for what in ("loss", "top-1"))]]
    for module, row in losses.items():
        cells = [
            (f"{row[kind]:.4f}", percent(top1.get(module, {}).get(kind, math.nan))) if kind in row else ("", "")
            for kind in names
        ]
        rows.append([str(module), *(cell for pair in cells for cell in pair)])
    speed = sum(epoch["images_per_second"] for epoch in epochs) / len(epochs)
    facts = {
        **(_test(tested, last["epoch"]) if tested else {"test top-1": "not tested yet"}),
        "time": f"{duration(last['seconds'])}, {speed:.0f} img/s in training",
        "memory": f"{mebibytes(last['memory_bytes'])} at the peak{_of_what(folder)}",
        "run folder": str(folder.path),
    }
    width = max(map(len, facts))
    lines = [f"Training, means over epoch {last['epoch']}", *aligned(rows), ""]
    return "\n".join([*lines, *(f"{name:<{width}}  {fact}" for name, fact in facts.items())])


def _of_what(folder: RunFolder) -> str:
    """On a CPU the figure is that of the process, Python and PyTorch included."""
    return ", of the whole process" if folder.read_environment().get("device") == "cpu" else ""


def _test(tested: dict[str, Any], epoch: int) -> dict[str, str]:
    when = "" if tested["epoch"] == epoch else f" after epoch {tested['epoch']}"
    return {
        "test top-1": f"{percent(tested['test_top1'])} of the exported backbone{when} (loss {tested['test_loss']:.4f})",
        **({"test top-5": percent(tested["test_top5"])} if "test_top5" in tested else {}),
        "best": f"{percent(tested['best_top1'])} after epoch {tested['best_epoch']} of {epoch}, by the test",
    }


def draw(folder: RunFolder) -> Path:
    """Draws RUN/report.png anew and gives its path; needs the package matplotlib.

    Raises:
        UserError: the run has not finished an epoch yet, or matplotlib is missing.
    """
    epochs = _epochs(folder)
    if importlib.util.find_spec("matplotlib") is None:
        raise UserError("report.png needs the package 'matplotlib': pip install matplotlib")
    from mlaan.observe.plot import plot

    plot(epochs, _title(folder), folder.report)
    return folder.report


def _epochs(folder: RunFolder) -> list[dict[str, Any]]:
    epochs = read_epochs(folder.metrics)
    if not epochs:
        raise UserError(f"{folder.path} has not finished an epoch yet: wait for it, or go on with --resume")
    return epochs


def _title(folder: RunFolder) -> str:
    """What was trained, in words."""
    config = tomllib.loads(folder.config.read_text())
    modules = config["partition"]["modules"]
    cut = "one piece" if modules == 1 else f"{modules} modules"
    return f"{config['model']['name']} in {cut} by {config['method']['name']} on {config['data']['name']}"
