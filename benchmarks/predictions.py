"""What the cost model says of the design's targets, before a GPU has been asked; docs/log.md keeps it.

    python -m benchmarks.predictions [--machine h100]

Every contender of the round that is a step plan is planned as `mlaan plan` plans it, on the meta device; below the
table stand the commands. The figures go through the very finders that read a round's rows. The two-path schedule and
compiled networks are no step plans, kernels' and the loader's speeds no steps: their targets have no prediction. A CUDA
graph is taken to launch its operators in no time, so that its figure is the most it can reach. Takes a minute.
"""

import argparse
import shlex
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cache
from typing import NamedTuple

from benchmarks.executors import CONTESTS, Contest
from benchmarks.imagenet import MORE, NETS, SEGMENTS_TRIED, Net
from benchmarks.running import Row
from benchmarks.targets import TARGETS
from mlaan.build import outline, with_kernels
from mlaan.cli.settings import load_config
from mlaan.plan.costs import PlanCosts
from mlaan.plan.duration import task_time
from mlaan.plan.lanes import choose_lanes, simulate
from mlaan.plan.machine import MACHINES, Machine
from mlaan.plan.predict import predict
from mlaan.plan.schedule import StepPlan

Words = tuple[tuple[str, str], ...]
"""Settings as on the command line: (key, value)."""
asked: list[Words] = []
"""All that were planned, each once."""


class Predicted(NamedTuple):
    """Of one training step: seconds, bytes that it makes at the peak, streams, share of the time with two at work."""

    seconds: float
    step_bytes: int
    lanes: int = 1
    overlap: float = 0.0


def words_of(case: Net | Contest, *more: tuple[str, str]) -> Words:
    """The settings of a case's network and images, in bfloat16, and others."""
    common = {
        "model.name": case.name.partition("-")[0],
        "data.name": "synthetic",
        "data.size": str(case.size),
        "data.classes": str(case.classes),
        "data.batch": str(case.batch),
        "train.precision": "bfloat16",
    }
    return (*common.items(), *more)


def ours(case: Net | Contest, *memory: tuple[str, str]) -> Words:
    """A case under its method, with a schedule and a recomputation."""
    local = (("method.preset", case.preset), ("partition.modules", str(case.modules)), ("partition.cuts", case.cuts))
    return words_of(case, *local, *memory)


def whole(case: Net | Contest, modules: int = 1, recompute: str = "none", kernels: str = "triton") -> Words:
    """End-to-end training of a case's network; with recompute once its modules are checkpointed segments."""
    parts = {"method.name": "end_to_end", "partition.modules": str(modules), "memory.schedule": "full"}
    return words_of(case, *parts.items(), ("memory.recompute", recompute), ("train.kernels", kernels))


@cache
def planned(words: Words) -> tuple[StepPlan, PlanCosts]:
    """The step plan that settings mean on a GPU, and what its tasks cost."""
    asked.append(words)
    config = with_kernels(load_config(None, list(words)), "cuda")
    found = outline(config).planned(int(dict(words)["data.batch"]), MACHINES["h100"])
    fused = found.settings is not None
    return found.plan, found.costs(found.site, found.supervision, found.parts(fused=fused), fused=fused)


def step(words: Words, machine: Machine, *, streams: bool = False) -> Predicted:
    """A step on one stream, or on as many as pay."""
    plan, costs = planned(words)
    times = [task_time(plan, costs, one, machine) for one in plan.steps]
    size = predict(plan, costs).step_bytes
    if not streams:
        return Predicted(sum(time.seconds for time in times), size)
    lanes = choose_lanes(plan, times)
    timeline = simulate(plan, lanes, times)
    return Predicted(timeline.seconds, size, lanes.count, timeline.overlap)


def net_rows(net: Net, machine: Machine) -> list[Row]:
    """Ours beside those of a net's rivals that are step plans, as the rows of a round."""
    rivals: dict[str, Predicted] = {}
    for rival in net.rivals:
        if rival == "end-to-end":
            rivals[rival] = step(whole(net, kernels="reference"), machine)
        elif rival == "end-to-end fused":
            rivals[rival] = step(whole(net, recompute="fused"), machine)
        elif rival == "checkpointed":
            tried = (step(whole(net, segments, "once"), machine) for segments in SEGMENTS_TRIED)
            rivals[rival] = min(tried, key=lambda one: one.step_bytes)
    if not rivals:
        return []
    local = step(ours(net, ("memory.recompute", "fused")), machine)
    return [
        {
            "benchmark": "imagenet",
            "case": net.name,
            "contender": "ours",
            "time_ratio": {name: {"median": local.seconds / one.seconds} for name, one in rivals.items()},
            "peak_ratio": {name: local.step_bytes / one.step_bytes for name, one in rivals.items()},
        }
    ]


def contest_rows(contest: Contest, machine: Machine) -> list[Row]:
    """Streams, and a graph of them that launches in no time, beside one stream."""
    words = ours(contest, ("memory.schedule", "full"))
    eager = step(words, machine)
    found = {"streams": step(words, machine, streams=True)}
    if "graph" in contest.executors:
        found["graph"] = step(words, replace(machine, launch=0.0), streams=True)
    return [
        {
            "benchmark": "executors",
            "case": contest.name,
            "contender": way,
            "time_ratio": {"eager": {"median": one.seconds / eager.seconds}},
            "lanes": one.lanes,
            "overlap": one.overlap,
        }
        for way, one in found.items()
    ]


def table(rows: Sequence[Row]) -> Iterable[str]:
    """The targets, in Markdown, each with what is predicted."""
    yield "| target | good | goal | predicted | measured |"
    yield "|---|---:|---:|---:|---:|"
    for target in TARGETS:
        words = target.what.replace("  ", "… ", 1) if target.what.startswith(" ") else target.what
        figures = (target.good, target.goal, target.find(rows))
        yield f"| {words} | {' | '.join('' if x is None else f'{x:,.2f}' for x in figures)} | not yet |"


def ratios(row: Row) -> str:
    """All that is predicted of a case."""
    said = [f"time / {name} {ratio['median']:.2f}" for name, ratio in row["time_ratio"].items()]
    said += [f"peak / {name} {ratio:.2f}" for name, ratio in row.get("peak_ratio", {}).items()]
    said += [f"streams {row['lanes']}, overlap {row['overlap']:.0%}"] if "lanes" in row else []
    return f"{row['case']} {row['contender']}: {', '.join(said)}"


def main(arguments: Sequence[str] | None = None, cases: Sequence[Net | Contest] = (*NETS, *MORE, *CONTESTS)) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.predictions", description="Targets, predicted.")
    parser.add_argument("--machine", choices=[name for name in MACHINES if name != "cpu"], default="h100")
    options = parser.parse_args(arguments)
    machine = MACHINES[options.machine]
    rows: list[Row] = []
    for case in cases:
        rows += net_rows(case, machine) if isinstance(case, Net) else contest_rows(case, machine)
    print("\n".join(table(rows)))
    print("", *(ratios(row) for row in rows), "", sep="\n")
    for words in asked:
        flags = [flag for key, value in words for flag in (f"--{key}", value)]
        print(shlex.join(["mlaan", "plan", *flags, "--machine", options.machine]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
