"""The picture of a comparison; needs the package matplotlib."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

from mlaan.compare.labels import Box, place
from mlaan.compare.result import Comparison, Row, front

_INK, _FAINT, _GRID, _FRONT = "#333333", "#777777", "#e6e6e6", "#b8d8ba"
_COLOURS = ("#2a6f97", "#d1495b", "#c98a1b", "#8f6bb3", "#3d8b6e", "#5c5c5c", "#b05f9e", "#7a8b2a")
_MARKERS = ("o", "D", "^", "v", "P", "X", "p", "h")
_FILLS = {"lean": "full", "windowed": "left", "full": "none"}
_SIZE = 7.5
"""Of a marker, in points."""
_BEYOND = 1.6
"""How far beyond the medians the frame goes for the sake of the spreads."""
_TICKS = (0.25, 0.5, 0.7, 1, 1.4, 2, 3, 4, 6, 8, 12, 16, 24, 50, 100, 200, 500, 1000)


def plot(comparison: Comparison, path: Path) -> None:
    """Draws every timed row: memory over end-to-end's across, time over end-to-end's upwards, front and spreads."""
    rows = comparison.timed()
    figure = Figure(figsize=(11, 6.6), dpi=120, layout="constrained", facecolor="white")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    looks = _looks(rows)
    _front(axes, rows)
    _courses(axes, rows, looks)
    for row in rows:
        x, y = row.memory, _time(row)
        low, _, high = row.time or (y, y, y)
        look = looks[row.candidate.family]
        axes.plot([x, x], [low, high], color=look["color"], linewidth=1.1, alpha=0.45, zorder=2)
        axes.plot(x, y, markersize=_SIZE, linestyle="none", zorder=3, **look, **_fill(row))
    _dress(axes, comparison, rows)
    _legend(figure, rows, looks)
    figure.draw_without_rendering()
    _label(axes, canvas, rows, looks)
    figure.savefig(path)


def _looks(rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """Colour and marker of each family."""
    local = list(dict.fromkeys(row.candidate.family for row in rows if row.candidate.is_local))
    looks: dict[str, dict[str, Any]] = {
        family: {"color": _COLOURS[i % len(_COLOURS)], "marker": _MARKERS[i % len(_MARKERS)]}
        for i, family in enumerate(local)
    }
    others = dict.fromkeys(row.candidate.family for row in rows if not row.candidate.is_local)
    return {family: {"color": _INK, "marker": "s"} for family in others} | looks


def _fill(row: Row) -> dict[str, Any]:
    """Full markers are lean, hollow ones full; a half has a window between. End-to-end's fused form is hollow."""
    if row.candidate.is_local:
        return {"fillstyle": _FILLS[row.candidate.config.memory.schedule], "markerfacecoloralt": "white"}
    return {"fillstyle": "none" if row.candidate.fused else "full"}


def _front(axes: Axes, rows: Sequence[Row]) -> None:
    best = front(rows)
    axes.step(
        [row.memory for row in best], [_time(row) for row in best], where="post", color=_FRONT, linewidth=5, zorder=0.5
    )


def _courses(axes: Axes, rows: Sequence[Row], looks: dict[str, dict[str, Any]]) -> None:
    """A thin line through a method's lean rows of one recomputation, by rising number of modules."""
    courses: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        memory = row.candidate.config.memory
        if row.candidate.is_local and memory.schedule == "lean":
            courses.setdefault((row.candidate.family, memory.recompute), []).append(row)
    for (family, _), course in courses.items():
        places = [row.memory for row in course], [_time(row) for row in course]
        axes.plot(*places, color=looks[family]["color"], linewidth=0.9, alpha=0.4)


def _dress(axes: Axes, comparison: Comparison, rows: Sequence[Row]) -> None:
    for line in (axes.axhline, axes.axvline):
        line(1, color=_FAINT, linewidth=0.9, linestyle=(0, (4, 3)), zorder=0.6)
    facts = comparison.facts
    size = "x".join(map(str, facts["input_shape"]))
    title = f"A training step of {facts['model']}, batch {facts['batch']} of {size}, beside end-to-end's"
    axes.set_title(title, fontsize=12, color=_INK, pad=10)
    axes.set_xlabel("← smaller        peak memory of a step, over end-to-end's")
    axes.set_ylabel("← faster        time of a step, over end-to-end's")
    axes.set_yscale("log")
    times, medians = [value for row in rows for value in row.time or ()], [_time(row) for row in rows]
    # one bad round must not squeeze the rest: its bar then leaves the frame
    axes.set_ylim(max(min(times) / 1.15, min(medians) / _BEYOND), min(max(times) * 1.15, max(medians) * _BEYOND))
    memory = [row.memory for row in rows]
    axes.set_xlim(0, max(1.1, max(memory) * 1.08))
    axes.yaxis.set_major_locator(FixedLocator(_TICKS))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#bbbbbb")
    axes.tick_params(which="both", color="#bbbbbb", labelcolor=_INK)


def _legend(figure: Figure, rows: Sequence[Row], looks: dict[str, dict[str, Any]]) -> None:
    local = list(dict.fromkeys(row.candidate.family for row in rows if row.candidate.is_local))
    handles: list[Any] = [
        Line2D([], [], linestyle="none", markersize=_SIZE, label=family, **looks[family]) for family in local
    ]
    present = {row.candidate.config.memory.schedule for row in rows if row.candidate.is_local}
    names = {"lean": "lean schedule", "windowed": "windowed", "full": "full"}
    handles += [
        Line2D([], [], linestyle="none", marker="o", color=_FAINT, markersize=_SIZE, label=names[key],
               fillstyle=cast(Any, fill), markerfacecoloralt="white")
        for key, fill in _FILLS.items()
        if key in present
    ]  # fmt: skip
    handles.append(Line2D([], [], color=_FAINT, linewidth=1.1, label="least to greatest"))
    handles.append(Patch(color=_FRONT, label="nothing is faster\nand smaller"))
    title = "numbers: modules"
    figure.legend(handles=handles, loc="outside right upper", fontsize=9, frameon=False, title=title, alignment="left")


def _label(axes: Axes, canvas: FigureCanvasAgg, rows: Sequence[Row], looks: dict[str, dict[str, Any]]) -> None:
    """Names and numbers of modules beside the markers, with a thin line where one had to go further away."""
    renderer = canvas.get_renderer()
    scale = axes.figure.dpi / 72
    half = _SIZE / 2 * scale
    markers, obstacles, sizes = [], [], []
    for row in rows:
        x, y = axes.transData.transform((row.memory, _time(row)))
        markers.append(Box(x - half, y - half, x + half, y + half))
        low, _, high = row.time or (1, 1, 1)
        ends = [axes.transData.transform((row.memory, value))[1] for value in (low, high)]
        obstacles.append(Box(x - 1.5, ends[0], x + 1.5, ends[1]))
        lines = [
            renderer.get_text_width_height_descent(line, _font(row), ismath=False) for line in _name(row).split("\n")
        ]
        sizes.append((max(line[0] for line in lines) + 4 * scale, 1.25 * sum(line[1] for line in lines)))
    frame = Box(*axes.bbox.extents)
    x, y = axes.transData.transform((1, 1))
    obstacles += [Box(frame.left, y - 1.5, frame.right, y + 1.5), Box(x - 1.5, frame.bottom, x + 1.5, frame.top)]
    boxes = place(markers, sizes, obstacles, frame, scale)
    for row, box in zip(rows, boxes, strict=True):
        x, y = axes.transData.transform((row.memory, _time(row)))
        offset = ((box.centre[0] - x) / scale, (box.centre[1] - y) / scale)
        away = abs(offset[0]) > box.right - box.left + 2 or abs(offset[1]) > 16
        note = axes.annotate(
            _name(row),
            (row.memory, _time(row)),
            offset,
            textcoords="offset points",
            ha="center",
            va="center",
            color=looks[row.candidate.family]["color"],
            fontproperties=_font(row),
            zorder=4,
            arrowprops={"arrowstyle": "-", "color": _FAINT, "linewidth": 0.5} if away else None,
        )
        note.set_in_layout(False)


def _name(row: Row) -> str:
    candidate = row.candidate
    if not candidate.is_local:
        return row.label.replace(", ", "\n").replace(" (", "\n(")
    recompute = candidate.config.memory.recompute
    return f"{candidate.config.partition.modules}{'' if recompute == 'none' else f' {recompute}'}"


def _font(row: Row) -> FontProperties:
    return FontProperties(
        size=8.5 if row.candidate.is_local else 9, weight="bold" if row.candidate.is_local else "normal"
    )


def _time(row: Row) -> float:
    assert row.time is not None
    return row.time.median
