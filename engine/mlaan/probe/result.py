"""What a probe found: as plain data, and in lines for a terminal."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from mlaan.observe.words import aligned, percent


@dataclass(frozen=True)
class ModuleProbe:
    """The output of one local module: its place, its blocks "first-last", channels, top-1 (0 to 1) of the probe."""

    module: int
    blocks: str
    channels: int
    top1: float


@dataclass(frozen=True)
class Likeness:
    """CKA between this run's modules, by row, and those of `run`, by column, at the same depths."""

    run: str
    cka: list[list[float]]

    @property
    def same_depth(self) -> list[float]:
        """The diagonal."""
        return [row[i] for i, row in enumerate(self.cka)]


@dataclass(frozen=True)
class Probe:
    """One run.

    Attributes:
        run: name of its folder.
        epoch: epochs that its weights were trained for.
        depths_of: name of the run whose modules' ends are the depths.
        images, test_images: how many the probes were fitted on and tested on; CKA is that of the test images.
        l2: the probes' penalty.
        test_top1: of the run's own classifier, 0 to 1.
        modules: by depth.
        cka: between the run's own modules.
        against: likeness to another run.
    """

    run: str
    epoch: int
    depths_of: str
    images: int
    test_images: int
    l2: float
    test_top1: float
    modules: tuple[ModuleProbe, ...]
    cka: list[list[float]]
    against: Likeness | None

    def as_dict(self) -> dict[str, Any]:
        """For JSON: null where a CKA is undefined."""
        return _without_nan(asdict(self))


def as_text(probe: Probe) -> str:
    """A row per module, then the matrix of CKA between the run's modules."""
    other = f"CKA to {probe.against.run}" if probe.against else ""
    rows = [["module", "blocks", "channels", "probe top-1", *([other] if other else [])]]
    for i, module in enumerate(probe.modules):
        row = [str(module.module), module.blocks, str(module.channels), percent(module.top1)]
        rows.append(row + ([_three(probe.against.same_depth[i])] if probe.against else []))
    names = [str(module.module) for module in probe.modules]
    matrix = [["", *names], *([name, *map(_three, row)] for name, row in zip(names, probe.cka, strict=True))]
    where = "" if probe.depths_of == probe.run else f", at the ends of {probe.depths_of}'s modules"
    return "\n".join(
        [
            f"{probe.run} after epoch {probe.epoch}{where}: linear probes on {probe.images} training images, "
            f"tested on {probe.test_images}; features pooled",
            *aligned(rows),
            f"the run's own classifier: {percent(probe.test_top1)}",
            "",
            "CKA between its modules",
            *aligned(matrix),
        ]
    )


def _three(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(inner) for inner in value]
    return None if isinstance(value, float) and math.isnan(value) else value
