"""The picture of a probe; needs the package matplotlib."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator, PercentFormatter

from mlaan.observe.words import percent
from mlaan.probe.result import Probe

_INK, _FAINT, _GRID, _LINE = "#333333", "#777777", "#e6e6e6", "#2a6f97"
_WRITTEN = 10
"""Modules up to which each cell of a matrix has its number."""


def plot(probe: Probe, path: Path) -> None:
    """Draws the probes' accuracy by depth, and the CKA of the modules among themselves and to the other run."""
    matrices = [(f"CKA between the modules of\n{probe.run}", probe.cka, probe.run)]
    if probe.against:
        matrices.append((f"CKA to {probe.against.run}\nat the same depths", probe.against.cka, probe.against.run))
    widths = [1.15, *[1.0] * len(matrices), 0.04]
    figure = Figure(figsize=(4.6 * sum(widths), 5), dpi=120, layout="constrained", facecolor="white")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.1)  # type: ignore[union-attr]
    accuracy, *squares, scale = figure.subplots(1, len(widths), gridspec_kw={"width_ratios": widths})
    _accuracy(accuracy, probe)
    images = [_matrix(axes, *matrix, probe.run) for axes, matrix in zip(squares, matrices, strict=True)]
    bar = figure.colorbar(images[0], cax=scale)
    bar.outline.set_visible(False)  # type: ignore[operator]
    bar.ax.tick_params(color=_FAINT, labelcolor=_FAINT)
    figure.savefig(path)


def _accuracy(axes: Axes, probe: Probe) -> None:
    places = [module.module for module in probe.modules]
    axes.axhline(probe.test_top1, color=_FAINT, linewidth=1, linestyle=(0, (4, 2)))
    label = f"the run's own classifier, {percent(probe.test_top1)}"
    axes.annotate(label, (0, probe.test_top1), (2, 4), textcoords="offset points", color=_FAINT, fontsize=9)
    axes.plot(places, [module.top1 for module in probe.modules], color=_LINE, linewidth=1.8, marker="o", markersize=4)
    axes.set_title("Linear probe on each module's output, test accuracy", fontsize=11.5, color=_INK, pad=10)
    axes.set(ylabel="top-1", xlabel=_depths(probe))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.grid(color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#bbbbbb")
    axes.tick_params(color="#bbbbbb", labelcolor=_INK)


def _matrix(axes: Axes, title: str, cka: Sequence[Sequence[float]], columns: str, rows: str) -> AxesImage:
    values = np.array(cka, dtype=float)
    image = axes.imshow(values, vmin=0, vmax=1, cmap="viridis", origin="lower")
    axes.set_title(title, fontsize=11.5, color=_INK, pad=10)
    axes.set(xlabel=f"{columns}, by module", ylabel=f"{rows}, by module")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
    axes.tick_params(color="#bbbbbb", labelcolor=_INK)
    axes.spines[:].set_visible(False)
    if len(values) <= _WRITTEN:
        for (row, column), value in np.ndenumerate(values):
            if not np.isnan(value):
                colour = "white" if value < 0.6 else "black"
                axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=8, color=colour)
    return image


def _depths(probe: Probe) -> str:
    return "module" if probe.depths_of == probe.run else f"module of {probe.depths_of}"
