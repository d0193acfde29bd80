"""The picture of a training step in time; needs the package matplotlib."""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlaan.errors import UserError
from mlaan.observe.words import percent
from mlaan.plan.timeline import Timeline

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_INK, _FAINT, _GRID, _PEAK, _FILL, _ALWAYS = "#333333", "#777777", "#e6e6e6", "#d1495b", "#b9c9d4", "#e4eaee"
_COLOURS = {
    "Forward": "#4c86b8",
    "Rebuild": "#a9cbe6",
    "Head": "#eda63a",
    "Propagate": "#9a77b8",
    "Backward": "#d16a5f",
    "Update": "#6aa56b",
    "Norm": "#8c8c8c",
}
_DARK_TEXT = ("Rebuild", "Head")
_WIDTH, _LANE, _MODULE, _MEMORY, _REST = 14.0, 0.5, 0.22, 1.9, 1.0
"""Inches: of the figure, of a lane, of a module where there are few, of the memory curve, of title and time axis."""
_FEW_TASKS = 150
"""Tasks up to which bars are set apart by white edges; more would be hidden behind these."""
_DIGIT = 0.085
"""Inches that a digit takes, in the bars' size of print."""


def draw(timeline: Timeline | Mapping[str, Timeline], path: Path, title: str, *, images: int | None = None) -> None:
    """Draws lanes, modules and memory over one time axis.

    A lane is a row of bars, coloured by the kind of task, with the module's number where there is room. Below it the
    same tasks stand at the height of their module, so that the order shows for any number of modules; then the bytes
    alive, with the peak and the task that runs then.

    Args:
        timeline: one, or several by name, such as predicted and measured: one above the other, on equal axes.
        path: where to; its ending tells the format: png, svg, pdf.
        title: what step it is.
        images: in a batch, to tell images per second.

    Raises:
        UserError: matplotlib is missing, there is no task to draw, or the file cannot be written.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise UserError(f"{path.name} needs the package 'matplotlib': pip install matplotlib")
    from matplotlib.figure import Figure

    rows = timeline if isinstance(timeline, Mapping) else {"": timeline}
    if not all(row.spans for row in rows.values()):
        raise UserError(f"{path.name} has nothing to show: the timeline has no task")
    last = max(span.module for row in rows.values() for span in row.spans)
    heights = [h for row in rows.values() for h in _heights(row, last)]
    figure = Figure(figsize=(_WIDTH, sum(heights) + _REST + 0.5 * len(rows)), dpi=120, layout="constrained")
    figure.set_facecolor("white")
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.04, hspace=0.02)  # type: ignore[union-attr]
    places = figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    figure.suptitle(title, fontsize=14, color=_INK)
    long = max(max([row.seconds, *(time for time, _ in row.memory[-1:])]) for row in rows.values())
    unit, name = next(((u, n) for u, n in ((1.0, "s"), (1e-3, "ms")) if long >= 10 * u), (1e-6, "µs"))
    high = max(row.peak[1] for row in rows.values())
    each = len(places) // len(rows)
    for place, (label, row) in enumerate(rows.items()):
        lanes, *modules, memory = places[place * each : (place + 1) * each]
        lanes.set_title(_caption(label, row, images), fontsize=11.5, color=_INK, loc="left", pad=6)
        _lanes(lanes, row, unit, _WIDTH / (long / unit))
        for axes in modules:
            _modules(axes, row, unit, last)
        _memory(memory, row, unit, high)
    places[-1].set(xlim=(0, long / unit * 1.002), xlabel=f"{name} from the step's start")
    _legend(places[0], rows)
    for axes in places:
        _dress(axes, bottom=axes is places[-1])
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot write {path}: {error}") from None


def _heights(timeline: Timeline, last: int) -> list[float]:
    """Inches of the lanes, of the modules where there are several, and of the memory."""
    modules = [min(_MODULE * (last + 2), 2.6)] if last else []
    return [_LANE * len(timeline.lanes), *modules, _MEMORY]


def _caption(label: str, timeline: Timeline, images: int | None) -> str:
    """The figures of one timeline in a line."""
    seconds = timeline.seconds
    facts = [f"{1000 * seconds:.{1 if seconds >= 0.01 else 3}f} ms"]
    if images is not None:
        rate = images / seconds
        facts.append(f"{rate:,.{0 if rate >= 100 else 1}f} img/s")
    if len(timeline.lanes) > 1:
        facts.append(f"lanes overlap {percent(timeline.overlap)} of the time")
    else:
        facts.append(f"one lane, overlap {percent(timeline.overlap)}")
    return f"{label}: {', '.join(facts)}" if label else ", ".join(facts)


def _lanes(axes: "Axes", timeline: Timeline, unit: float, inches: float) -> None:
    """Args: inches: that a unit of time takes."""
    for row, lane in enumerate(timeline.lanes):
        spans = [span for span in timeline.spans if span.lane == lane]
        _bars(axes, spans, unit, lambda _, row=row: row - 0.42, 0.84)
        for span in spans:
            number, middle = str(span.module), (span.start + span.end) / 2 / unit
            if span.seconds / unit * inches > _DIGIT * (len(number) + 0.6):
                colour = _INK if span.kind in _DARK_TEXT else "white"
                axes.text(middle, row, number, ha="center", va="center", fontsize=8, color=colour, clip_on=True)
    count = len(timeline.lanes)
    axes.set(ylim=(count - 0.5, -0.5), yticks=range(count))
    axes.set_yticklabels([f"lane {lane}" for lane in timeline.lanes])


def _modules(axes: "Axes", timeline: Timeline, unit: float, last: int) -> None:
    from matplotlib.ticker import MaxNLocator

    _bars(axes, timeline.spans, unit, lambda span: span.module - 0.45, 0.9)
    axes.set(ylim=(-0.6, last + 0.6), ylabel="module")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))


def _bars(axes: "Axes", spans: Any, unit: float, bottom: Any, height: float) -> None:
    """A rectangle for each span, those of a kind as one collection."""
    from matplotlib.collections import PolyCollection

    for kind, colour in _COLOURS.items():
        corners = []
        for span in (span for span in spans if span.kind == kind):
            a, b, y = span.start / unit, span.end / unit, bottom(span)
            corners.append([(a, y), (b, y), (b, y + height), (a, y + height)])
        edges = "white" if len(spans) <= _FEW_TASKS else "face"
        axes.add_collection(PolyCollection(corners, facecolors=colour, edgecolors=edges, linewidths=0.3, label=kind))


def _memory(axes: "Axes", timeline: Timeline, unit: float, high: int) -> None:
    if not timeline.memory:
        axes.text(0.5, 0.5, "memory is not known", transform=axes.transAxes, ha="center", color=_FAINT)
        return
    size, name = next(((s, n) for s, n in ((2**30, "GiB"), (2**20, "MiB")) if high >= 2 * s), (2**10, "KiB"))
    times = [time / unit for time, _ in timeline.memory]
    levels = [level / size for _, level in timeline.memory]
    times.append(max(timeline.seconds / unit, times[-1]))
    levels.append(levels[-1])
    axes.fill_between(times, levels, step="post", color=_FILL, linewidth=0)
    axes.fill_between(times, [min(levels)] * len(times), color=_ALWAYS, linewidth=0)
    if min(levels) > 0.12 * high / size:  # else there is no room for it
        always = f"{min(levels):,.1f} {name} all the time"
        axes.annotate(always, (0, 0), (6, 5), textcoords="offset points", color=_FAINT, fontsize=9)
    axes.step(times, levels, where="post", color=_INK, linewidth=0.9)
    time, most = timeline.peak
    axes.plot(time / unit, most / size, "o", color=_PEAK, markersize=6, zorder=3)
    running = [span.name for span in timeline.spans if span.start <= time < span.end]
    text = f"peak {most / size:,.1f} {name}" + (f" in {', '.join(map(_short, running))}" if running else "")
    late = time > timeline.seconds / 2
    look: dict[str, Any] = {"ha": "right" if late else "left", "va": "bottom", "color": _PEAK, "weight": "bold"}
    axes.annotate(text, (time / unit, most / size), (0, 6), textcoords="offset points", **look)
    axes.set(ylim=(0, high / size * 1.25), ylabel=f"bytes alive, {name}")


def _short(name: str) -> str:
    """A step's name without the tasks that are joined with it."""
    first, *joined = name.split(" + ")
    return f"{first} + {len(joined)} joined" if joined else first


def _legend(axes: "Axes", rows: Mapping[str, Timeline]) -> None:
    """On the right of the first caption."""
    from matplotlib.patches import Patch

    there = {span.kind for row in rows.values() for span in row.spans}
    patches = [Patch(color=colour, label=kind) for kind, colour in _COLOURS.items() if kind in there]
    place: dict[str, Any] = {"loc": "lower right", "bbox_to_anchor": (1, 1), "borderaxespad": 0.1}
    axes.legend(handles=patches, ncols=len(patches), frameon=False, labelcolor=_INK, handlelength=1.2, **place)


def _dress(axes: "Axes", *, bottom: bool) -> None:
    axes.grid(axis="x", color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#bbbbbb")
    axes.tick_params(color="#bbbbbb", labelcolor=_INK)
    axes.tick_params(axis="x", length=3.5 if bottom else 0)
