"""What the rows of a GPU round say about the design's targets. Standard library only."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

Rows = Sequence[dict[str, Any]]


@dataclass(frozen=True)
class Target:
    """One line of the design's table of targets.

    Attributes:
        good, goal: figures, goal the better one; None: the design has none.
        find: the figure in a round's rows; None: not measured.
    """

    what: str
    good: float | None
    goal: float | None
    find: Callable[[Rows], float | None] = lambda rows: None

    def verdict(self, found: float | None) -> str:
        """Which of the two the figure reaches, or "missed"."""
        if found is None:
            return "not measured"
        if self.good is None or self.goal is None:
            return ""
        sign = 1 if self.goal > self.good else -1
        if sign * found >= sign * self.goal:
            return "goal"
        return "good" if sign * found >= sign * self.good else "missed"


def images(case: str, rival: str) -> Callable[[Rows], float | None]:
    """Ours / a rival's images per second, the median of pairs taken side by side."""

    def find(rows: Rows) -> float | None:
        ratio = _ours(rows, case).get("time_ratio", {}).get(rival)
        return 1 / ratio["median"] if ratio else None

    return find


def peak(case: str) -> Callable[[Rows], float | None]:
    """Ours / plain end-to-end's peak memory."""
    return lambda rows: _ours(rows, case).get("peak_ratio", {}).get("end-to-end")


def seconds(case: str, rival: str) -> Callable[[Rows], float | None]:
    """Ours / a rival's time."""
    return lambda rows: _ours(rows, case).get("time_ratio", {}).get(rival, {}).get("median")


def images_by(executor: str, cases: Sequence[str]) -> Callable[[Rows], float | None]:
    """Images per second with an executor over those with the eager one, where that gains least among some cases."""

    def find(rows: Rows) -> float | None:
        mine = [row for row in rows if row.get("case") in cases and row.get("contender") == executor]
        return min((1 / row["time_ratio"]["eager"]["median"] for row in mine if not row.get("obstacle")), default=None)

    return find


def least_share(operator: str) -> Callable[[Rows], float | None]:
    """The lowest share of the floor's speed among an operator's fused forward and backward passes."""

    def find(rows: Rows) -> float | None:
        passes = ("forward", "backward")
        found = (row for row in _micro(rows, operator, "fused") if row["phase"] in passes)
        return min((row["share"] for row in found), default=None)

    return find


def worst_cost(operator: str, plain: str) -> Callable[[Rows], float | None]:
    """The highest forward time of the fused form over that of another, among the operator's shapes."""

    def find(rows: Rows) -> float | None:
        ours, theirs = (
            {row["shape"]: row["ms"]["p50"] for row in _micro(rows, operator, name) if row["phase"] == "forward"}
            for name in ("fused", plain)
        )
        return max((ours[shape] / theirs[shape] for shape in ours.keys() & theirs.keys()), default=None)

    return find


def images_loaded(rows: Rows) -> float | None:
    """Images per second of the fastest of our ways of loading."""
    mine = (row for row in rows if row["benchmark"] == "data" and row["contender"].startswith("ours"))
    return max((row["images_per_second"] for row in mine), default=None)


def _ours(rows: Rows, case: str) -> dict[str, Any]:
    return next((row for row in rows if row.get("case") == case and row.get("contender") == "ours"), {})


def _micro(rows: Rows, operator: str, contender: str) -> Iterable[dict[str, Any]]:
    micro = (row for row in rows if row["benchmark"] == "micro")
    return (row for row in micro if row.get("operator") == operator and row.get("contender") == contender)


_KERNELS = "end-to-end fused"
_RESNET50, _RESNET101, _EVERY_BLOCK = "resnet50-4-light", "resnet101-8-light", "resnet101-33-light"
_CIFAR = ("resnet32-15-light", "resnet32-8-paper")
TARGETS = (
    Target("img/s of end-to-end, same kernels: ResNet-50, K = 4", 0.80, 0.86, images(_RESNET50, _KERNELS)),
    Target("  ResNet-50, K = 8", 0.72, 0.82, images("resnet50-8-light", _KERNELS)),
    Target("  ResNet-101, K = 4", 0.80, 0.86, images("resnet101-4-light", _KERNELS)),
    Target("  ResNet-101, K = 8", 0.72, 0.82, images(_RESNET101, _KERNELS)),
    Target("  ResNet-101, K = all blocks", 0.65, 0.82, images(_EVERY_BLOCK, _KERNELS)),
    Target(
        "img/s of torch.compile end-to-end: ResNet-50, K = 4", 0.85, 1.0, images(f"{_RESNET50}-compiled", "compiled")
    ),
    Target("  ResNet-50, K = 8", None, None, images("resnet50-8-light-others", "compiled")),
    Target("  ResNet-101, K = 4", 0.85, 1.0, images("resnet101-4-light-others", "compiled")),
    Target("  ResNet-101, K = 8", None, None, images(f"{_RESNET101}-compiled", "compiled")),
    Target("img/s of the two-path schedule, same kernels: ResNet-101, K = 8", 2.0, 3.0, images(_RESNET101, "two-path")),
    Target("  ResNet-101, published leap networks, K = 33", 1.4, 2.5, images("resnet101-33-paper", "two-path")),
    Target("peak memory of plain end-to-end: ResNet-101, K = 8", 0.40, 0.32, peak(_RESNET101)),
    Target("  its time of plain end-to-end's, at most 1.25", 1.25, 1.25, seconds(_RESNET101, "end-to-end")),
    Target("  its time of checkpointing's, same kernels", 1.0, 1.0, seconds(_RESNET101, "checkpointed")),
    Target("  ResNet-101, K = all blocks", 0.32, 0.26, peak(_EVERY_BLOCK)),
    Target("  ResNet-152, K = all blocks", None, 0.20, peak("resnet152-50-light")),
    Target("`fast`, time of end-to-end, same kernels: ResNet-50", 1.7, 1.4, seconds("resnet50-16-fast", _KERNELS)),
    Target("img/s with streams of those with one", 1.05, 1.15, images_by("streams", ["resnet50-8-light-streams"])),
    Target("BatchNorm and ReLU, least share of copy bandwidth", 0.80, 0.93, least_share("batchnorm_act")),
    Target("1x1 convolution with its neighbours, worst time of plain", 1.15, 1.05, worst_cost("conv1x1", "plain")),
    Target("CIFAR nets, CUDA graph against eager", 2.0, 4.0, images_by("graph", _CIFAR)),
    Target("loader, img/s on 16 cores", 6000, 8000, images_loaded),
)


def table(rows: Rows) -> str:
    """Each target beside what was found."""
    lines = [f"{'target':<66}{'good':>8}{'goal':>8}{'found':>8}"]
    for target in TARGETS:
        found = target.find(rows)
        figures = (target.good, target.goal, found)
        cells = "".join(f"{_show(figure):>8}" for figure in figures)
        lines.append(f"{target.what:<66}{cells}  {target.verdict(found)}".rstrip())
    return "\n".join(lines)


def _show(figure: float | None) -> str:
    return "-" if figure is None else f"{figure:,.{0 if figure >= 100 else 2}f}"
