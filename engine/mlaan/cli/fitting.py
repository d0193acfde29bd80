"""`mlaan plan --memory`: from settings and a size to the settings that fit, in words and as a file."""

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlaan.build import bench_for, choice_of, with_choice, with_kernels
from mlaan.cli.arguments import Overrides
from mlaan.cli.machines import Chosen
from mlaan.config import Config, dumps, gib
from mlaan.config.toml import read_chain
from mlaan.errors import UserError
from mlaan.observe.words import aligned
from mlaan.plan.candidates import BALANCED, Choice, Estimate
from mlaan.plan.report import speed
from mlaan.plan.rivals import Rival, rivals
from mlaan.plan.search import ALIKE, RECOMPUTE, Space, module_counts, search


@dataclass(frozen=True)
class Found:
    """What fits.

    Attributes:
        config: the settings of the best.
        plans: the best few, best first.
        rivals: end-to-end training under the same budget.
        budget: bytes.
        asked: images to reach in a step.
        chosen: the machine.
    """

    config: Config
    plans: Sequence[Estimate]
    rivals: Sequence[Rival]
    budget: int
    asked: int
    chosen: Chosen

    def as_data(self) -> dict[str, Any]:
        """For --json."""
        return {
            "memory": self.budget,
            "machine": self.chosen.machine.name,
            "batch": self.asked,
            "plans": [_data(one) for one in self.plans],
            "rivals": [_data(rival.estimate) | {"name": rival.name, "fits": self.fits(rival)} for rival in self.rivals],
            "verdict": list(verdict(self)),
        }

    def fits(self, rival: Rival) -> bool:
        """Whether a rival fits."""
        return rival.estimate.peak_bytes <= self.budget


def given_keys(file: str | None, overrides: Overrides) -> set[str]:
    """The dotted keys that a person set, in a file, in one that it builds on, or on the command line."""
    tables = [table for _, table in read_chain(Path(file))] if file else []
    return {key for table in tables for key in _dotted(table, "")} | {key for key, _ in overrides}


def _dotted(table: dict[str, Any], before: str) -> Iterator[str]:
    for name, value in table.items():
        if isinstance(value, dict):
            yield from _dotted(value, f"{before}{name}.")
        else:
            yield before + name


def find(config: Config, chosen: Chosen, budget: int, given: set[str]) -> Found:
    """The fastest settings that fit; what was given stays.

    Raises:
        UserError: nothing fits, or settings that do not fit each other.
    """
    planned = with_kernels(config, chosen.machine.kind, is_here=chosen.is_here)
    bench = bench_for(planned, chosen.machine)
    space = _space(choice_of(config), bench.blocks, config.method.name, given)
    plans = search(bench, space, budget)
    beside = rivals(bench, space.batch, budget)
    return Found(with_choice(config, plans[0].choice), plans, beside, budget, space.batch, chosen)


def _space(now: Choice, blocks: int, method: str, given: set[str]) -> Space:
    modules = module_counts(blocks, 1 if method == "end_to_end" else min(2, blocks))
    listed = isinstance(now.cuts, tuple) and "partition.cuts" in given
    if "partition.modules" in given or listed:
        modules = [now.modules]
    scheduled = {"memory.schedule", "memory.window"} & given
    return Space(
        modules,
        [now.cuts] if "partition.cuts" in given else ["even", BALANCED],
        [(now.schedule, now.window)] if scheduled else [],
        [now.recompute] if "memory.recompute" in given else RECOMPUTE,
        now.batch,
        "data.batch" in given,
    )


def write(found: Found, path: Path, memory: str) -> None:
    """The best settings as a file for `mlaan train`; raises UserError where that cannot be written.

    Args:
        memory: the amount as it was given, for the file's first line.
    """
    best = found.plans[0]
    # a name from a file of figures may hold anything, and a comment is one line of printable text
    machine = "".join(c if c.isprintable() else " " for c in found.chosen.machine.name)
    about = f"predicted peak {gib(best.peak_bytes)}, {speed(best.images_per_second)} img/s"
    try:
        path.write_text(
            f"# made by `mlaan plan --memory {memory}` for {machine}: {about}\n{dumps(found.config)}", encoding="utf-8"
        )
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}: give another --out") from None


def as_text(found: Found, path: Path) -> list[str]:
    """What was found, as lines for a terminal."""
    machine, best = found.chosen.machine, found.plans[0]
    order = "fastest first" if len({one.choice.batch for one in found.plans}) == 1 else "largest batch, then fastest"
    ties = f" (within {100 * ALIKE:.0f} % the smallest)" if len(found.plans) > 1 else ""
    lines = [f"Settings that fit into {gib(found.budget)} on {machine.name}, {order}{ties}:", ""]
    head = ["modules", "cuts", "schedule", "recompute", "batch", "peak", "img/s"]
    rows = [_row(one) for one in found.plans]
    lines += aligned([head, *rows])
    lines += ["", "End-to-end training in the same memory:"]
    names = ["", *(rival.name for rival in found.rivals)]
    beside = [["batch", "peak", "", "img/s"]]
    for rival in found.rivals:
        one = rival.estimate
        fits = "fits" if found.fits(rival) else "does not fit"
        beside.append([str(one.choice.batch), gib(one.peak_bytes), fits, speed(one.images_per_second)])
    width = max(map(len, names))
    lines += [f"{name:<{width}}  {line}" for name, line in zip(names, aligned(beside), strict=True)]
    lines += ["", *verdict(found)]
    if best.choice.batch < found.asked:
        lines.append(f"data.batch = {found.asked} does not fit: {best.choice.batch} is the most that was found to.")
    lines.append(f"Times are those of {machine.name} ({found.chosen.why}).")
    return [*lines, f"The first is in {path}: mlaan train --config {shlex.quote(str(path))}"]


def verdict(found: Found) -> Iterator[str]:
    """Where an end-to-end rival that fits is faster than the best plan, or as good in less memory, or just as good."""
    best, local = found.plans[0], found.config.method.name != "end_to_end"
    for rival in found.rivals:
        one = rival.estimate
        if not found.fits(rival):
            continue
        faster = one.images_per_second > (1 + ALIKE) * best.images_per_second
        as_fast = one.images_per_second >= (1 - ALIKE) * best.images_per_second
        less = one.peak_bytes < (1 - ALIKE) * best.peak_bytes
        as_small = one.peak_bytes <= (1 + ALIKE) * best.peak_bytes
        name = rival.name[0].upper() + rival.name[1:]
        if one.choice.batch < best.choice.batch:
            if faster:
                yield f"{name}: is faster than the best plan, with batches of {one.choice.batch} images."
        elif faster and less:
            yield f"{name}: needs less and is faster than the best plan."
        elif faster:
            yield f"{name}: fits as well, and is faster than the best plan."
        elif less:
            yield f"{name}: needs less than the best plan, but is not faster."
        elif as_fast and as_small and local:
            yield f"{name}: is as good as the best plan: local learning brings nothing here."


def _row(one: Estimate) -> list[str]:
    choice = one.choice
    schedule = f"windowed {choice.window}" if choice.schedule == "windowed" else choice.schedule
    cuts = choice.cuts if isinstance(choice.cuts, str) else "by bytes"
    size, rate = gib(one.peak_bytes), speed(one.images_per_second)
    return [str(choice.modules), cuts, schedule, choice.recompute, str(choice.batch), size, rate]


def _data(one: Estimate) -> dict[str, Any]:
    choice = one.choice
    return {
        "modules": choice.modules,
        "cuts": choice.cuts if isinstance(choice.cuts, str) else list(choice.cuts),
        "schedule": choice.schedule,
        "window": choice.window,
        "recompute": choice.recompute,
        "batch": choice.batch,
        "peak_bytes": one.peak_bytes,
        "seconds": one.seconds,
        "images_per_second": one.images_per_second,
    }
