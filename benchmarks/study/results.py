"""What the study knows, as it is kept in results.json."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mlaan.errors import UserError

REFERENCE = "end_to_end"
"""The config that the others are held against: end-to-end for as many epochs."""

OURS = "(ours)"
"""How the label of a variant ends that nobody has published."""


@dataclass(frozen=True)
class Measured:
    """One training step on this machine.

    Attributes:
        ms: least, median and greatest milliseconds.
        time_ratio: least, median and greatest of its time over plain end-to-end's in the same round.
        peak_bytes: the allocator's peak above what the step found.
        peak_ratio: over plain end-to-end's.
    """

    ms: tuple[float, float, float]
    time_ratio: tuple[float, float, float]
    peak_bytes: int
    peak_ratio: float


@dataclass(frozen=True)
class Cost:
    """A training step, predicted (float32, exact FLOPs) and measured.

    Attributes:
        flops, flops_ratio: of a step, and over end-to-end's.
        trained: parameters that are trained; twins: those that follow as moving averages.
        predicted_bytes, predicted_ratio: peak of the activations, and over end-to-end's.
    """

    flops: int
    flops_ratio: float
    trained: int
    twins: int
    predicted_bytes: int
    predicted_ratio: float
    measured: Measured | None = None


@dataclass(frozen=True)
class DepthProbe:
    """What `mlaan probe` found, means over the seeds that were probed.

    Attributes:
        blocks: first and last block of each depth.
        top1: of a linear classifier at each depth, 0 to 1.
        cka: to the reference at each depth; None where it was not compared.
        seeds: how many runs were probed.
    """

    blocks: tuple[str, ...]
    top1: tuple[float, ...]
    cka: tuple[float, ...] | None
    seeds: int


@dataclass(frozen=True)
class Variant:
    """One config with all its finished seeds.

    Attributes:
        stem: the config's file name; label: its first comment line; group: its folder.
        end_to_end: it is trained end-to-end.
        top1: test accuracy after the last epoch, 0 to 1, by seed.
        steps: training steps of a whole run.
        cost: key of its step's cost; variants that differ in length alone share one.
    """

    stem: str
    label: str
    group: str
    end_to_end: bool
    epochs: int
    steps: int
    top1: dict[str, float]
    cost: str
    probe: DepthProbe | None = None

    @property
    def is_ours(self) -> bool:
        return self.label.endswith(OURS)


@dataclass(frozen=True)
class Results:
    """Everything that tables and plots are made of.

    Attributes:
        setting: what the runs share, and where they ran, in words.
        measured_on: where costs were measured, in words; empty if nowhere yet.
        variants: in the order of the tables: end-to-end by length, then by group and total FLOPs.
        costs: by `Variant.cost`.
        segments, checkpointed: end-to-end with its best number of checkpointed segments, the same gradients.
    """

    setting: dict[str, str]
    measured_on: str
    variants: tuple[Variant, ...]
    costs: dict[str, Cost]
    segments: int
    checkpointed: Cost

    @property
    def reference(self) -> Variant:
        return next(variant for variant in self.variants if variant.stem == REFERENCE)

    def total_flops(self, variant: Variant) -> int:
        """Of all training steps of one run; tests are not in it."""
        return variant.steps * self.costs[variant.cost].flops

    def numbers(self) -> dict[str, int]:
        """The number of each variant in tables and plots, from 1, by stem."""
        return {variant.stem: i for i, variant in enumerate(self.variants, 1)}

    def of_group(self, group: str) -> list[Variant]:
        """End-to-end's variants, then the group's own."""
        return [variant for variant in self.variants if variant.end_to_end or variant.group == group]


def ordered(variants: Sequence[Variant], costs: dict[str, Cost]) -> tuple[Variant, ...]:
    """In the order of `Results.variants`."""

    def place(variant: Variant) -> tuple[bool, str, int]:
        group = "" if variant.end_to_end else variant.group
        return not variant.end_to_end, group, variant.steps * costs[variant.cost].flops

    return tuple(sorted(variants, key=place))


def depth_name(blocks: str) -> str:
    """ "2.0-2.1" as it is, "2.0-2.0" as "2.0"."""
    first, _, last = blocks.partition("-")
    return first if first == last else blocks


def save(results: Results, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asdict(results), indent=1, allow_nan=False) + "\n", encoding="utf-8")


def load(path: Path) -> Results:
    """What `save` wrote.

    Raises:
        UserError: no such file.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is not there: give the folder of the study's runs, too") from None
    return Results(
        setting=content["setting"],
        measured_on=content["measured_on"],
        variants=tuple(_variant(row) for row in content["variants"]),
        costs={key: _cost(row) for key, row in content["costs"].items()},
        segments=content["segments"],
        checkpointed=_cost(content["checkpointed"]),
    )


def _variant(row: dict[str, Any]) -> Variant:
    found = row.pop("probe")
    probe = None if found is None else DepthProbe(**_with_tuples(found))
    return Variant(**row, probe=probe)


def _cost(row: dict[str, Any]) -> Cost:
    found = row.pop("measured")
    return Cost(**row, measured=None if found is None else Measured(**_with_tuples(found)))


def _with_tuples(row: dict[str, Any]) -> dict[str, Any]:
    """JSON's lists as they were."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in row.items()}
