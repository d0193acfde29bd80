"""The same training step by several executors: task by task, on several streams, as one CUDA graph.

    python -m benchmarks.executors [--device cuda] [--cases resnet32-15-light ...] [--budget SECONDS] [--json FILE]

bfloat16 autocast, channels_last, schedule full for all, so that they run one plan. End-to-end training goes through the
same engine, with and without a graph. A case gets rows only if all executors of a method give the same losses step by
step from equal weights. On a CPU the eager ones run alone.

How many streams pay is chosen by predicted times; where that is one, "streams" is the eager step. "2 streams" takes two
whatever is predicted, and so tells whether the choice was right.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import torch

from benchmarks.contenders import LEARNING_RATE, MOMENTUM, WEIGHT_DECAY, step_peak
from benchmarks.measure import Batch, interleaved
from benchmarks.running import (
    Row,
    halve_until_it_fits,
    make_batches,
    make_parser,
    make_rows,
    require_agreement,
    run_cases,
)
from mlaan import MLAAN, Backbone, EndToEnd, Engine
from mlaan.errors import UserError
from mlaan.execute.graph import GraphExecutor
from mlaan.execute.streams import StreamExecutor
from mlaan.models import BACKBONES
from mlaan.observe import profiling
from mlaan.plan.duration import task_time
from mlaan.plan.lanes import LanePlan, assign, simulate
from mlaan.plan.placing import machine_like

BATCHES, WARMUP = 3, 3
CHECKED = 5
"""Steps whose losses are compared: one task by task, one that is captured or goes to streams, three after it."""
CHECKED_RATE = 0.02
"""Their learning rate: large enough that steps which moved no weight show in later losses."""
Way = Literal["eager", "streams", "2 streams", "graph"]


class Entry(NamedTuple):
    """A contender: its name, its method, into how many modules it cuts, its executor."""

    name: str
    method: MLAAN | EndToEnd
    modules: int
    executor: Way


@dataclass(frozen=True)
class Contest:
    """One network under one method, by several executors.

    Attributes:
        backbone: makes it.
        cuts: as in `mlaan.Engine`.
        batch: images per step.
        executors: that are put beside each other, the eager one first.
        rivals: executors of end-to-end training.
    """

    name: str
    backbone: Callable[[], Backbone]
    modules: int
    preset: Literal["paper", "light"]
    cuts: str
    batch: int
    executors: tuple[Way, ...]
    rivals: tuple[Way, ...] = ()
    size: int = 32
    classes: int = 10

    def entries(self, device: torch.device) -> list[Entry]:
        """The contenders that run on a device."""
        local = [Entry(way, MLAAN(preset=self.preset), self.modules, way) for way in self.executors]
        whole = [
            Entry("end-to-end" if way == "eager" else f"end-to-end {way}", EndToEnd(), 1, way) for way in self.rivals
        ]
        return [entry for entry in (*local, *whole) if runs_on(device, entry.executor)]


_ALL: tuple[Way, ...] = ("eager", "streams", "graph")
_STREAMS: tuple[Way, ...] = ("eager", "streams", "2 streams")
_RESNET32, _RESNET50 = partial(BACKBONES["resnet32"], 10, 3), partial(BACKBONES["resnet50"], 1000, 3)
CONTESTS = (
    Contest("resnet32-15-light", _RESNET32, 15, "light", "even", 128, _ALL, ("eager", "graph")),
    Contest("resnet50-8-light-streams", _RESNET50, 8, "light", "flops", 256, _STREAMS, (), 224, 1000),
    Contest("resnet32-8-paper", _RESNET32, 8, "paper", "even", 128, _ALL),
)


def runs_on(device: torch.device, way: Way) -> bool:
    """Whether an executor is what its name says on a device."""
    return way == "eager" or device.type == "cuda"


def make_engine(contest: Contest, entry: Entry, device: torch.device) -> Engine:
    """A contender with the weights that all of its method begin with."""
    torch.manual_seed(0)
    backbone = contest.backbone()
    backbone.net.to(device)
    made = Engine(
        backbone,
        entry.method,
        entry.modules,
        input_shape=(3, contest.size, contest.size),
        cuts=contest.cuts,
        schedule="full",
        precision="bfloat16",
        channels_last=True,
        kernels="triton" if device.type == "cuda" else "reference",
        executor="streams" if entry.executor == "2 streams" else entry.executor,
        learning_rate=CHECKED_RATE,
        momentum=MOMENTUM,
        weight_decay=WEIGHT_DECAY,
    )
    if entry.executor == "2 streams" and isinstance(made.executor, StreamExecutor):
        made.executor.lanes_for = lambda shape: two_lanes(made, shape[0])
    return made


def two_lanes(engine: Engine, batch: int) -> LanePlan:
    """The better way to run a step on two streams, by the predicted times."""
    machine = machine_like(engine.device)
    planned = engine.planned(batch, machine)
    fused = planned.settings is not None
    costs = planned.costs(planned.site, planned.supervision, planned.parts(fused=fused), fused=fused)
    times = [task_time(planned.plan, costs, step, machine, planned.precision) for step in planned.plan.steps]
    tried = [assign(planned.plan, times, 2, trunks) for trunks in (1, 2)]
    return min(tried, key=lambda lanes: simulate(planned.plan, lanes, times).seconds)


def check(contest: Contest, made: dict[str, Engine], batch: Batch) -> None:
    """Every executor's losses are those of the method's first one, in each of some steps; sets the rate for timing.

    Raises:
        WrongLossesError: they are not.
    """
    right: dict[str, torch.Tensor] = {}
    for name, engine in made.items():
        losses = torch.stack([engine.step(*batch).losses for _ in range(CHECKED)]).cpu()
        wanted = right.setdefault(engine.method.name, losses)
        for step, (ours, theirs) in enumerate(zip(losses.tolist(), wanted.tolist(), strict=True)):
            for loss, one, other in zip(engine.loss_names, ours, theirs, strict=True):
                require_agreement(contest.name, f"{loss} by {name} in step {step}", one, other)
        engine.learning_rate = LEARNING_RATE


def measure(contest: Contest, batch: int, rounds: int, device: torch.device) -> list[Row]:
    """A row per contender, as plain data.

    A graph holds several streams, too. Its peak is left out: its memory is there before the step and stays. "overlap"
    is the share of the working time in which two streams or more work, of the profiled step of median length;
    "obstacle" says what kept a contender from being what its name says, or from being measured.

    Raises:
        WrongLossesError: nothing was measured.
        torch.OutOfMemoryError, StepMemoryError: the batch does not fit.
    """
    batches = make_batches(BATCHES, batch, contest.size, contest.classes, device)
    made = {entry.name: make_engine(contest, entry, device) for entry in contest.entries(device)}
    check(contest, made, batches[0])
    replayed = {name for name, engine in made.items() if isinstance(engine.executor, GraphExecutor)}
    peaks = {name: step_peak(engine, batches[0]) for name, engine in made.items() if name not in replayed}
    times = interleaved({name: engine.step for name, engine in made.items()}, batches, rounds, WARMUP)
    about: Row = {
        "benchmark": "executors",
        "case": contest.name,
        "modules": contest.modules,
        "preset": contest.preset,
        "cuts": contest.cuts,
        "schedule": "full",
        "shape": [batch, 3, contest.size, contest.size],
        "dtype": "bfloat16 autocast",
    }
    rows = make_rows(about, times, peaks)
    for name, engine in made.items():
        rows[name] |= watched(engine, batches[0])
    return list(rows.values())


def watched(engine: Engine, batch: Batch) -> Row:
    """What else there is to say of an engine that has taken its steps: of streams the number chosen and the overlap."""
    executor = engine.executor
    if isinstance(executor, GraphExecutor):
        return {"obstacle": executor.obstacle} if executor.obstacle else {}
    if not isinstance(executor, StreamExecutor):
        return {}
    lanes, _ = executor.way(tuple(batch[0].shape))
    try:
        found = profiling.measure(engine, *batch)
    except UserError as error:
        return {"lanes": lanes.count, "obstacle": str(error)}
    return {"lanes": lanes.count, "overlap": found.steps[found.median].overlap}


def measure_what_fits(contest: Contest, batch: int, rounds: int, device: torch.device) -> list[Row]:
    """With half the batch, and half of that, where the device's memory is too small."""
    return halve_until_it_fits(lambda images: measure(contest, images, rounds, device), batch)


def main(arguments: Sequence[str] | None = None, contests: Sequence[Contest] = CONTESTS) -> int:
    """The command line; returns the exit code: 1 if a case has no rows, or one with an obstacle."""
    parser = make_parser("executors", "Steps by several executors.", [contest.name for contest in contests])
    options = parser.parse_args(arguments)
    chosen = [contest for contest in contests if not options.cases or contest.name in options.cases]
    return run_cases(chosen, options, measure_what_fits)


if __name__ == "__main__":
    sys.exit(main())
