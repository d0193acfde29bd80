"""Whole training steps of the big networks with the same kernels for all: the rows behind the design's targets.

    python -m benchmarks.imagenet [--device cuda] [--cases resnet50-4-light ...] [--budget SECONDS] [--json FILE]

bfloat16 autocast and channels_last throughout. A case gets a row only if the losses of all agree where they must. Where
a batch does not fit into the device's memory, the case starts again with half of it.
"""

import argparse
import copy
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from benchmarks.contenders import LEARNING_RATE, MOMENTUM, WEIGHT_DECAY, Contender, EndToEnd, step_peak
from benchmarks.machine import facts
from benchmarks.measure import Batch, interleaved, paired_ratios, percentiles
from exact.compare import judge_of
from exact.two_path import TwoPath
from mlaan import MLAAN, Backbone, Engine
from mlaan.models import BACKBONES
from mlaan_kernels.blocks import fuse

PRECISION = torch.bfloat16
AGREEMENT = 2**-5
"""Relative gap between losses in bfloat16 above which something else was computed."""
SEGMENTS_TRIED = (3, 4, 6, 8)
BATCHES, WARMUP, ROUNDS = 3, 3, 15
Rival = Literal["end-to-end", "end-to-end fused", "checkpointed", "two-path", "compiled"]
ALL: tuple[Rival, ...] = ("end-to-end", "end-to-end fused", "checkpointed", "two-path")


class WrongLossesError(RuntimeError):
    """The contenders do not compute the same: there is nothing to time."""


@dataclass(frozen=True)
class Net:
    """One network, how it is cut and supervised, and whom it is put beside.

    Attributes:
        backbone: makes it.
        cuts: as in `mlaan.Engine`: "flops" for time, "bytes" for memory.
        batch: images per step.
        rivals: end-to-end in plain PyTorch, with our fused blocks, those checkpointed, compiled; and the two-path
            schedule with our fused blocks.
    """

    name: str
    backbone: Callable[[], Backbone]
    modules: int
    preset: Literal["paper", "light"]
    cuts: str
    batch: int
    rivals: tuple[Rival, ...] = ALL
    size: int = 224
    classes: int = 1000


_RESNET50, _RESNET101 = (partial(BACKBONES[name], 1000, 3) for name in ("resnet50", "resnet101"))
NETS = (
    Net("resnet50-4-light", _RESNET50, 4, "light", "flops", 256),
    Net("resnet101-8-light", _RESNET101, 8, "light", "bytes", 256),
    Net("resnet101-33-paper", _RESNET101, 33, "paper", "even", 64, ("end-to-end fused", "two-path")),
    Net("resnet50-8-light", _RESNET50, 8, "light", "flops", 256, ("end-to-end fused",)),
    Net("resnet101-4-light", _RESNET101, 4, "light", "flops", 256, ("end-to-end fused",)),
    Net("resnet50-4-light-compiled", _RESNET50, 4, "light", "flops", 256, ("compiled",)),
)


def make_all(net: Net, batch: Batch) -> tuple[dict[str, Contender], int]:
    """Ours and the rivals from equal weights, and the checkpointed one's segments: the lowest peak of those tried.

    Raises:
        WrongLossesError: their losses on `batch` do not agree.
    """
    device = batch[0].device
    torch.manual_seed(0)
    backbone = net.backbone()
    backbone.net.to(device).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    method = MLAAN(preset=net.preset)
    ours = Engine(
        backbone,
        method,
        net.modules,
        input_shape=(3, net.size, net.size),
        cuts=net.cuts,
        precision="bfloat16",
        channels_last=True,
        kernels="triton" if device.type == "cuda" else "reference",
        recompute="fused",
        learning_rate=LEARNING_RATE,
        momentum=MOMENTUM,
        weight_decay=WEIGHT_DECAY,
    )
    contenders: dict[str, Contender] = {"ours": ours}
    segments = 1
    for rival in net.rivals:
        if rival == "two-path":
            contenders[rival] = _two_path(ours, method)
            continue
        fused = rival in ("end-to-end fused", "checkpointed")
        made = contenders[rival] = EndToEnd(copy.deepcopy(backbone), PRECISION, fused)
        if rival == "checkpointed":
            segments = _best_split(made, batch)
        if rival == "compiled":
            made.compile()
    _compare(net.name, contenders, batch)
    return contenders, segments


def _two_path(engine: Engine, method: MLAAN) -> TwoPath:
    modules, supervision = copy.deepcopy((engine.partition.modules(engine.backbone), engine.supervision))
    modules = [fuse(module) for module in modules]
    for loss in supervision.losses:
        fuse(loss.head)
    judge = judge_of(engine, method, modules, supervision)
    judge.learning_rate, judge.precision = LEARNING_RATE, PRECISION
    return judge


def _best_split(made: EndToEnd, batch: Batch) -> int:
    start = copy.deepcopy(made.net.state_dict())
    made.step(*batch)  # momenta are there before a peak is taken
    blocks = len(made.backbone.blocks)
    peaks = {}
    for segments in sorted({min(count, blocks) for count in SEGMENTS_TRIED}):
        made.split(segments)
        peaks[segments] = step_peak(made, batch)
    best = min(peaks, key=peaks.__getitem__)
    made.split(best)
    made.net.load_state_dict(start)
    made.optimizer.state.clear()
    return best


def _compare(name: str, contenders: dict[str, Contender], batch: Batch) -> None:
    """The two-path schedule's losses are ours; every end-to-end's loss is the same."""
    pairs: dict[str, tuple[Any, Any]] = {}
    two_path, ours = contenders.get("two-path"), contenders["ours"]
    if isinstance(two_path, TwoPath) and isinstance(ours, Engine):
        found = zip(ours.loss_names, ours.gradients(*batch).losses, strict=True)
        wanted = two_path.step(*batch, update=False)
        pairs = {loss: (value, wanted[loss]) for loss, value in found}
    plain = {rival: made.step(*batch) for rival, made in contenders.items() if isinstance(made, EndToEnd)}
    first = next(iter(plain.values()), None)
    pairs |= {rival: (loss, first) for rival, loss in plain.items()}
    for what, (value, right) in pairs.items():
        gap = abs(float(value) - float(right)) / abs(float(right))
        if not gap < AGREEMENT:
            raise WrongLossesError(f"{name}: the loss {what} is {gap:.1e} off, where {AGREEMENT:.1e} is allowed")


def measure(net: Net, batch: int, rounds: int, device: torch.device) -> list[dict[str, Any]]:
    """A row per contender, as plain data.

    Raises:
        WrongLossesError: nothing was measured.
        torch.cuda.OutOfMemoryError: the batch does not fit.
    """
    random = torch.Generator(device).manual_seed(0)
    batches = [
        (
            torch.randn(batch, 3, net.size, net.size, generator=random, device=device).to(
                memory_format=torch.channels_last
            ),
            torch.randint(net.classes, (batch,), generator=random, device=device),
        )
        for _ in range(BATCHES)
    ]
    contenders, segments = make_all(net, batches[0])
    for made in contenders.values():  # momenta and chosen kernels are there before a peak is taken
        made.step(*batches[0])
    peaks = {name: step_peak(made, batches[0]) for name, made in contenders.items() if name != "compiled"}
    times = interleaved({name: made.step for name, made in contenders.items()}, batches, rounds, WARMUP)
    rows = []
    for name, seconds in times.items():
        spread = percentiles(seconds)
        row = {
            "benchmark": "imagenet",
            "case": net.name,
            "contender": name,
            "modules": net.modules,
            "preset": net.preset,
            "cuts": net.cuts,
            "checkpointed_segments": segments,
            "shape": [batch, 3, net.size, net.size],
            "dtype": "bfloat16 autocast",
            "rounds": rounds,
            "ms": {p: 1e3 * value for p, value in zip(("p20", "p50", "p80"), spread, strict=True)},
            "images_per_second": batch / spread.median,
            "time_ratio": {other: paired_ratios(seconds, theirs)._asdict() for other, theirs in times.items()},
        }
        if name in peaks:
            row["peak_bytes"] = peaks[name]
            row["peak_ratio"] = {other: peaks[name] / theirs for other, theirs in peaks.items()}
        rows.append(row)
    return rows


def measure_what_fits(net: Net, batch: int, rounds: int, device: torch.device) -> list[dict[str, Any]]:
    """With half the batch, and half of that, where the device's memory is too small."""
    while True:
        try:
            return measure(net, batch, rounds, device)
        except torch.cuda.OutOfMemoryError:
            if batch == 1:
                raise
        batch //= 2  # outside: the exception's frames hold the tensors
        torch.cuda.empty_cache()


def main(arguments: Sequence[str] | None = None, nets: Sequence[Net] = NETS) -> int:
    """The command line; returns the exit code: 1 if a case has no rows."""
    start = time.monotonic()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.imagenet", description="Steps of the big networks.")
    names = [net.name for net in nets]
    parser.add_argument("--device", default="cuda", type=torch.device)
    parser.add_argument("--cases", nargs="+", choices=names, default=names, metavar="CASE", help=f"of {names}; all")
    parser.add_argument("--batch", type=int, help="images per step; each case's own")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="measured rounds")
    parser.add_argument("--budget", type=float, default=float("inf"), help="seconds after which no case is begun")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there, after each case")
    parser.add_argument("--commit", help="recorded where the sources are a copy without their repository")
    options = parser.parse_args(arguments)
    if options.device.type == "cuda" and not torch.cuda.is_available():
        print("torch sees no CUDA device here: --device cpu runs it, but a CPU's times mean nothing", file=sys.stderr)
        return 2
    torch.backends.cudnn.benchmark = True
    machine, rows, good = facts(options.device, options.commit), [], True
    for net in (net for net in nets if net.name in options.cases):
        if time.monotonic() - start > options.budget:
            print(f"{net.name}: not measured, the time is up", flush=True)
            good = False
            continue
        try:
            found = measure_what_fits(net, options.batch or net.batch, options.rounds, options.device)
        except Exception as error:  # one case must not take the others with it
            print(f"{net.name}: refused: {type(error).__name__}: {error}", flush=True)
            good = False
            continue
        for row in found:
            print(f"{row['case']} {row['contender']}: {row['images_per_second']:.0f} img/s", flush=True)
        rows += [machine | row for row in found]
        if options.json:
            options.json.parent.mkdir(parents=True, exist_ok=True)
            options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return int(not good)


if __name__ == "__main__":
    sys.exit(main())
