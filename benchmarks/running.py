"""What benchmarks of whole training steps share: their inputs and rows, and a loop over cases that none can stop."""

import argparse
import gc
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch

from benchmarks.machine import facts
from benchmarks.measure import Batch, paired_ratios, percentiles
from mlaan.errors import StepMemoryError

AGREEMENT = 2**-5
"""Relative gap between losses in bfloat16 above which something else was computed."""
ROUNDS = 15
Row = dict[str, Any]


class WrongLossesError(RuntimeError):
    """The contenders do not compute the same: there is nothing to time."""


class Case(Protocol):
    """One table of a benchmark.

    Attributes:
        batch: images per step, unless the command line says otherwise.
    """

    @property
    def name(self) -> str: ...

    @property
    def batch(self) -> int: ...


AnyCase = TypeVar("AnyCase", bound=Case)


def require_agreement(case: str, what: str, value: float, right: float) -> None:
    """Raises WrongLossesError where two losses are further apart than bfloat16 may put them."""
    gap = abs(value - right) / abs(right)
    if not gap < AGREEMENT:
        raise WrongLossesError(f"{case}: the loss {what} is {gap:.1e} off, where {AGREEMENT:.1e} is allowed")


def make_batches(count: int, batch: int, size: int, classes: int, device: torch.device) -> list[Batch]:
    """Random images (N, 3, size, size), channels last, and labels (N,); the same at every call."""
    random = torch.Generator(device).manual_seed(0)
    return [
        (
            torch.randn(batch, 3, size, size, generator=random, device=device).to(memory_format=torch.channels_last),
            torch.randint(classes, (batch,), generator=random, device=device),
        )
        for _ in range(count)
    ]


def make_rows(about: Row, times: Mapping[str, Sequence[float]], peaks: Mapping[str, int]) -> dict[str, Row]:
    """A row per contender, by its name.

    Args:
        about: goes into each row; "shape" begins with the images of a step.
        times: seconds of each contender in each round.
        peaks: peak bytes of those whose memory was measured.
    """
    rows = {}
    for name, seconds in times.items():
        spread = percentiles(seconds)
        row = rows[name] = about | {
            "contender": name,
            "rounds": len(seconds),
            "ms": {p: 1e3 * value for p, value in zip(("p20", "p50", "p80"), spread, strict=True)},
            "images_per_second": about["shape"][0] / spread.median,
            "time_ratio": {other: paired_ratios(seconds, theirs)._asdict() for other, theirs in times.items()},
        }
        if name in peaks:
            row["peak_bytes"] = peaks[name]
            row["peak_ratio"] = {other: peaks[name] / theirs for other, theirs in peaks.items()}
    return rows


def halve_until_it_fits(measure: Callable[[int], list[Row]], batch: int) -> list[Row]:
    """With half the batch, and half of that, where the device's memory is too small."""
    while True:
        try:
            return measure(batch)
        except (torch.OutOfMemoryError, StepMemoryError):
            if batch == 1:
                raise
        batch //= 2
        _collect()  # outside: the exception's frames hold the tensors


def make_parser(module: str, description: str, names: Sequence[str]) -> argparse.ArgumentParser:
    """The options that `run_cases` reads."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{module}", description=description)
    parser.add_argument("--device", default="cuda", type=torch.device)
    parser.add_argument("--cases", nargs="+", choices=names, metavar="CASE", help=f"of {names}")
    parser.add_argument("--batch", type=int, help="images per step; each case's own")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="measured rounds")
    parser.add_argument("--budget", type=float, default=float("inf"), help="seconds after which no case is begun")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there, after each case")
    parser.add_argument("--commit", help="recorded where the sources are a copy without their repository")
    return parser


def run_cases(
    cases: Sequence[AnyCase],
    options: argparse.Namespace,
    measure: Callable[[AnyCase, int, int, torch.device], list[Row]],
) -> int:
    """Measure every case that there is time for; one that fails takes no other with it.

    Args:
        measure: gives the rows of a case, a batch, a number of rounds and a device. A row with an "obstacle" counts as
            failed, and stays.

    Returns:
        The exit code: 1 if a case has no rows, or one with an obstacle; 2 without the device.
    """
    start = time.monotonic()
    if options.device.type == "cuda" and not torch.cuda.is_available():
        print("torch sees no CUDA device here: --device cpu runs it, but a CPU's times mean nothing", file=sys.stderr)
        return 2
    torch.backends.cudnn.benchmark = True
    machine, rows, good = facts(options.device, options.commit), [], True
    for case in cases:
        if time.monotonic() - start > options.budget:
            print(f"{case.name}: not measured, the time is up", flush=True)
            good = False
            continue
        _collect()
        try:
            found = measure(case, options.batch or case.batch, options.rounds, options.device)
        except Exception as error:  # one case must not take the others with it
            print(f"{case.name}: refused: {type(error).__name__}: {error}", flush=True)
            good = False
            continue
        for row in found:
            print(f"{row['case']} {row['contender']}: {row['images_per_second']:.0f} img/s", flush=True)
            if row.get("obstacle"):
                print(f"{row['case']} {row['contender']}: failed: {row['obstacle']}", flush=True)
                good = False
        rows += [machine | row for row in found]
        if options.json:
            options.json.parent.mkdir(parents=True, exist_ok=True)
            options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return int(not good)


def _collect() -> None:
    """Engines hold themselves in cycles: without this the case before would still be in memory."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
