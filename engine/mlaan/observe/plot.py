"""The picture of a run; needs the package matplotlib."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, PercentFormatter

from mlaan.observe.words import kinds, percent, split_name

_INK, _FAINT, _GRID, _BEST = "#333333", "#777777", "#e6e6e6", "#d1495b"
_STYLES = ("-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (4, 1.5, 1, 1.5)))
_MARKED_EPOCHS = 40
_DEPTHS = ListedColormap(colormaps["viridis"](range(0, 225)))
"""Dark violet for the first module to green for the last; viridis' yellow end is too faint on white."""


def plot(epochs: list[dict[str, Any]], title: str, path: Path) -> None:
    """Draws the epoch lines of a metrics.jsonl: test accuracy, and loss and accuracy of every local loss."""
    figure = Figure(figsize=(15, 5), dpi=120, layout="constrained", facecolor="white")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.1)  # type: ignore[union-attr]
    test, loss, top1, depth = figure.subplots(1, 4, gridspec_kw={"width_ratios": [1, 1, 1, 0.03]})
    figure.suptitle(title, fontsize=14, color=_INK)
    _test(test, epochs)
    names = list(epochs[0]["losses"])
    last = max(split_name(name)[0] for name in names)
    for axes, what in ((loss, "losses"), (top1, "top1")):
        _by_loss(axes, epochs, what, names, last)
    loss.set(title="Training loss of each module", ylabel="cross-entropy, mean over the epoch", yscale="log")
    loss.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    loss.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    loss.yaxis.set_minor_formatter(NullFormatter())
    top1.set(title="Training accuracy of each module", ylabel="top-1, mean over the epoch")
    for axes in (test, top1):
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.set_ylim(top=min(axes.get_ylim()[1], 1.03))
    for axes in (test, loss, top1):
        _dress(axes)
    _legend(figure, names)
    if last:
        bar = figure.colorbar(ScalarMappable(Normalize(0, last), _DEPTHS), cax=depth, label="module, by depth")
        bar.ax.yaxis.set_major_locator(MaxNLocator(integer=True))
        bar.ax.tick_params(color=_FAINT, labelcolor=_FAINT)
        bar.outline.set_visible(False)  # type: ignore[operator]
    else:
        depth.set_axis_off()
    figure.savefig(path)


def _test(axes: Axes, epochs: list[dict[str, Any]]) -> None:
    tested = [epoch for epoch in epochs if "test_top1" in epoch]
    if tested:
        best = max(tested, key=lambda epoch: epoch["test_top1"])
        x, y = best["epoch"], best["test_top1"]
        _line(axes, tested, [epoch["test_top1"] for epoch in tested], color=_INK, linewidth=1.8)
        axes.plot(x, y, "o", color=_BEST, markersize=7, zorder=3)
        side = "right" if x > (epochs[0]["epoch"] + epochs[-1]["epoch"]) / 2 else "left"
        look = {"ha": side, "color": _BEST, "weight": "bold", "bbox": {"fc": "white", "ec": "none", "pad": 1.5}}
        axes.annotate(f"best {percent(y)}", (x, y), (0, -20), textcoords="offset points", **look)
    axes.set(title="Test accuracy of the exported backbone", ylabel="top-1")
    pace = epochs[-1]["seconds"] / epochs[-1]["epoch"]
    unit, name = (60, "minutes") if epochs[-1]["seconds"] >= 180 else (1, "seconds")
    clock = axes.secondary_xaxis(
        -0.17, functions=(lambda e: np.asarray(e) * pace / unit, lambda t: np.asarray(t) * unit / pace)
    )
    clock.set_xlabel(name, color=_FAINT)
    clock.tick_params(color=_FAINT, labelcolor=_FAINT)
    clock.spines["bottom"].set_color(_GRID)


def _by_loss(axes: Axes, epochs: list[dict[str, Any]], what: str, names: list[str], last: int) -> None:
    styles = dict(zip(kinds(names), _STYLES * len(names), strict=False))
    for name in (name for name in names if name in epochs[0][what]):
        module, kind = split_name(name)
        values = [epoch[what][name] for epoch in epochs]
        _line(axes, epochs, values, color=_DEPTHS(module / max(last, 1)), linestyle=styles[kind], linewidth=1.4)


def _line(axes: Axes, epochs: list[dict[str, Any]], values: list[float], **style: Any) -> None:
    marker = "o" if len(epochs) <= _MARKED_EPOCHS else ""
    axes.plot([epoch["epoch"] for epoch in epochs], values, marker=marker, markersize=2.5, **style)


def _legend(figure: Figure, names: list[str]) -> None:
    """Line styles alone, below the right half: the colours are the bar's matter."""
    styles = zip(kinds(names), _STYLES * len(names), strict=False)
    lines = [Line2D([], [], color=_INK, linestyle=style, label=kind) for kind, style in styles]
    figure.legend(handles=lines, loc="lower right", bbox_to_anchor=(0.93, 0.02), ncols=len(lines), frameon=False)


def _dress(axes: Axes) -> None:
    axes.set_xlabel("epoch")
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_title(axes.get_title(), fontsize=11.5, color=_INK, pad=10)
    axes.grid(color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#bbbbbb")
    axes.tick_params(which="both", color="#bbbbbb", labelcolor=_INK)
