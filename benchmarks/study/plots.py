"""The study's plots; needs the package matplotlib."""

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING

from benchmarks.study.results import Cost, Results, Variant, depth_name
from mlaan.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_INK, _FAINT, _GRID = "#333333", "#777777", "#e6e6e6"
_PLAIN, _OURS, _FRONT = "#333333", "#d1495b", "#b8d8ba"
_GROUPS = ("#2a6f97", "#8f6bb3", "#c98a1b", "#3d8b6e")


def draw(results: Results, folder: Path) -> list[Path]:
    """Writes the Pareto plots, and the probes' plot where there are probes; gives the files.

    Raises:
        UserError: matplotlib is missing.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise UserError("the study's plots need the package 'matplotlib': pip install matplotlib")
    drawn = {"accuracy_flops": _by_flops(results), "accuracy_memory": _by_memory(results)}
    if any(variant.probe for variant in results.variants):
        drawn["probe"] = _by_depth(results)
    return [_saved(figure, folder / f"{name}.png") for name, figure in drawn.items()]


def front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The (cost, accuracy) points, by rising cost, that no other point beats at the same or a lower cost."""
    best: list[tuple[float, float]] = []
    for cost, accuracy in sorted(points, key=lambda point: (point[0], -point[1])):
        if not best or accuracy > best[-1][1]:
            best.append((cost, accuracy))
    return best


def _by_flops(results: Results) -> "Figure":
    title = "Accuracy against the FLOPs of the whole training"
    return _pareto(results, lambda variant: results.total_flops(variant) / 1e12, title, "TFLOP in all, log scale")


def _by_memory(results: Results) -> "Figure":
    """By measured peaks where all were measured, else by predicted ones: the axis says which."""
    kinds = [*results.costs.values(), results.checkpointed]
    is_measured = all(cost.measured for cost in kinds)

    def mebibytes(cost: Cost) -> float:
        return (cost.measured.peak_bytes if cost.measured and is_measured else cost.predicted_bytes) / 2**20

    what = "measured" if is_measured else "predicted, float32"
    label = f"peak of a step in MiB ({what}), log scale"
    title = "Accuracy against peak memory"
    least, numbers = mebibytes(results.checkpointed), results.numbers()
    lengths = [variant for variant in results.variants if variant.end_to_end]
    rivals = {f"{numbers[each.stem]}, checkpointed": (least, 100 * mean(each.top1.values())) for each in lengths}
    return _pareto(results, lambda variant: mebibytes(results.costs[variant.cost]), title, label, rivals)


def _pareto(
    results: Results,
    cost: Callable[[Variant], float],
    title: str,
    label: str,
    rivals: Mapping[str, tuple[float, float]] | None = None,
) -> "Figure":
    """Mean and deviation over the seeds against a cost, with the front of what nothing beats.

    Args:
        rivals: further points by their names: the same trainings at another cost.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogFormatter, LogLocator, NullFormatter

    figure = Figure(figsize=(11, 6), layout="constrained", facecolor="white")
    axes = figure.add_subplot()
    numbers = results.numbers()
    means = {variant.stem: 100 * mean(variant.top1.values()) for variant in results.variants}
    rivals = rivals or {}
    steps = front([*((cost(variant), means[variant.stem]) for variant in results.variants), *rivals.values()])
    axes.step(
        *zip(*steps, strict=True), where="post", color=_FRONT, linewidth=4, zorder=0, label="nothing is better for less"
    )
    lengths = [(cost(variant), means[variant.stem]) for variant in results.variants if variant.end_to_end]
    axes.plot(*zip(*sorted(lengths), strict=True), color=_PLAIN, linewidth=1.2, zorder=1)
    for variant in results.variants:
        place = (cost(variant), means[variant.stem])
        values = [100 * value for value in variant.top1.values()]
        spread = stdev(values) if len(values) > 1 else 0
        name, colour = _name(results, variant), _colour(results, variant)
        axes.errorbar(*place, spread, fmt=_marker(variant), color=colour, label=name)
        axes.annotate(str(numbers[variant.stem]), place, (4, 4), textcoords="offset points", fontsize=8, color=_INK)
    for name, place in rivals.items():
        axes.plot(*place, "s", color=_PLAIN, markerfacecolor="white", zorder=3)
        axes.annotate(name, place, (6, -10), textcoords="offset points", fontsize=7.5, color=_FAINT)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(LogFormatter(minor_thresholds=(10, 10)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set(xlabel=label, ylabel="test top-1 in % after the last epoch, mean ± deviation over seeds")
    axes.set_title(title, color=_INK, pad=10)
    _dress(axes)
    figure.legend(loc="outside right center", fontsize=7.5, frameon=False)
    return figure


def _by_depth(results: Results) -> "Figure":
    """Linear probes and likeness to end-to-end by depth, of the variants that were probed where the first was."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    probed = [(variant, variant.probe) for variant in results.variants if variant.probe]
    blocks = probed[0][1].blocks
    probed = [(variant, probe) for variant, probe in probed if probe.blocks == blocks]
    figure = Figure(figsize=(13, 5), layout="constrained", facecolor="white")
    accuracy, likeness = figure.subplots(1, 2)
    others = [variant.stem for variant, _ in probed if not variant.end_to_end]
    for variant, probe in probed:
        colour = _PLAIN if variant.end_to_end else colormaps["tab10"](others.index(variant.stem) % 10)
        look = {"color": colour, "marker": _marker(variant), "markersize": 4, "linewidth": 1.3}
        number = results.numbers()[variant.stem]
        lines = [(accuracy, [100 * value for value in probe.top1])]
        if probe.cka and not variant.end_to_end:
            lines.append((likeness, list(probe.cka)))
        for axes, values in lines:
            axes.plot(range(len(blocks)), values, label=_name(results, variant), **look)
            end = (len(blocks) - 1, values[-1])
            axes.annotate(str(number), end, (6, -3), textcoords="offset points", fontsize=8, color=colour)
    accuracy.set(title="Linear probe on each module's output", ylabel="test top-1 in %")
    likeness.set(title="Likeness to end-to-end at the same depth", ylabel="linear CKA")
    for axes in (accuracy, likeness):
        axes.set_xlabel("module, by its blocks")
        axes.set_xticks(range(len(blocks)), [depth_name(each) for each in blocks], rotation=45)
        _dress(axes)
    handles, labels = accuracy.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", fontsize=7.5, frameon=False)
    return figure


def _name(results: Results, variant: Variant) -> str:
    return f"{results.numbers()[variant.stem]:>2}  {variant.label.replace('`', '')}"


def _colour(results: Results, variant: Variant) -> str:
    if variant.end_to_end:
        return _PLAIN
    if variant.is_ours:
        return _OURS
    groups = list(dict.fromkeys(other.group for other in results.variants if not other.end_to_end))
    return _GROUPS[groups.index(variant.group) % len(_GROUPS)]


def _marker(variant: Variant) -> str:
    return "s" if variant.end_to_end else "D" if variant.is_ours else "o"


def _dress(axes: "Axes") -> None:
    axes.grid(color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#bbbbbb")
    axes.tick_params(which="both", color="#bbbbbb", labelcolor=_INK)


def _saved(figure: "Figure", path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, metadata={"Software": None})
    return path
