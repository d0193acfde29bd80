"""Whole training steps: end-to-end, checkpointed end-to-end, the two-path schedule and ours, in one run.

    python -m benchmarks.steps [--device cuda] [--cases resnet32-light ...] [--rounds 9] [--batch 64] [--json FILE]

Before a case is timed, ours and the two-path schedule must give equal gradients in float64; if they do not, the case
gets no row and the exit code is 1.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # read once by torch: its profiler complains where there is no GPU

import torch

from benchmarks.contenders import (
    Case,
    WrongGradientsError,
    check_gradients,
    make_batches,
    make_contenders,
    step_peak,
)
from benchmarks.machine import facts
from benchmarks.measure import flops, interleaved, paired_ratios, percentiles
from mlaan.execute import arithmetic
from mlaan.models import BACKBONES

REFERENCES = ("end-to-end", "two-path")
BATCHES, WARMUP, GPU_ROUNDS = 4, 1, 30

_RESNET32 = partial(BACKBONES["resnet32"], 10, 3)
_RESNET50 = partial(BACKBONES["resnet50"], 10, 3)
CASES = (
    Case("resnet32-light", _RESNET32, 32, 15, "light", "published", batch=32, gpu_batch=256, rounds=7),
    Case("resnet32-paper", _RESNET32, 32, 15, "paper", "published", batch=32, gpu_batch=256, rounds=7),
    Case("resnet50-4-light", _RESNET50, 96, 4, "light", "bytes", batch=16, gpu_batch=128, rounds=5),
    Case("resnet50-8-light", _RESNET50, 96, 8, "light", "bytes", batch=16, gpu_batch=128, rounds=5),
)


def measure_case(case: Case, batch: int, rounds: int, device: torch.device) -> list[dict[str, Any]]:
    """Gate, FLOPs, peak memory and times of one case: a row per contender, as plain data.

    Raises:
        WrongGradientsError: the gate is shut; nothing was measured.
    """
    gap = check_gradients(case, device)
    batches = make_batches(case, batch, BATCHES, device, torch.float32)
    contenders, segments = make_contenders(case, batches[0])
    counted = {name: flops(partial(contender.step, *batches[0])) for name, contender in contenders.items()}
    peaks = {name: step_peak(contender, batches[0]) for name, contender in contenders.items()}
    times = interleaved({name: contender.step for name, contender in contenders.items()}, batches, rounds, WARMUP)
    rows = []
    for name, seconds in times.items():
        spread = percentiles(seconds)
        rows.append(
            {
                "benchmark": "steps",
                "case": case.name,
                "contender": name,
                "modules": case.modules,
                "preset": case.preset,
                "reach": case.reach,
                "cuts": case.cuts,
                "checkpointed_segments": segments,
                "shape": [batch, *case.shape],
                "dtype": "float32",
                "rounds": rounds,
                "gradient_gap": gap,
                "ms": {p: 1e3 * value for p, value in zip(("p20", "p50", "p80"), spread, strict=True)},
                "images_per_second": batch / spread.median,
                "time_ratio": {other: paired_ratios(seconds, times[other])._asdict() for other in REFERENCES},
                "flops": counted[name],
                "flops_ratio": {other: counted[name] / counted[other] for other in REFERENCES},
                "peak_bytes": peaks[name],
                "peak_ratio": {other: peaks[name] / peaks[other] for other in REFERENCES},
            }
        )
    return rows


def heading(machine: dict[str, Any], device: torch.device) -> str:
    """What the figures below were taken on, and how to read them."""
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    busy = f"\nThe machine is busy (load {load:.1f} on {cores} cores): expect wide spreads." if load > cores / 2 else ""
    driver = f", driver {machine['driver']}, triton {machine['triton']}" if machine["driver"] else ""
    return (
        f"{machine['device']} ({device.type}), {machine['threads']} threads, torch {machine['torch']}{driver}, "
        f"commit {machine['commit']}, float32\n"
        "Absolute times are this machine's and no other's. Ratios of time are taken pair by pair within a round: "
        "least, median, greatest.\n"
        "Peaks are allocator events above what the step found: activations, gradients and the kernels' workspace."
        + busy
    )


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows of one case as lines for a terminal."""
    first = rows[0]
    images, *size = first["shape"]
    lines = [
        f"{first['case']}: {first['modules']} modules, cuts {first['cuts']}, preset {first['preset']}, "
        f"reach {first['reach']}; batch {images} of {'x'.join(map(str, size))}; {first['rounds']} rounds; "
        f"{first['checkpointed_segments']} checkpointed segments; gradients agree to {first['gradient_gap']:.0e}",
        f"{'':<13}{'ms p20':>9}{'p50':>9}{'p80':>9}{'img/s':>9} |{'time / end-to-end':^19}|{'time / two-path':^19}|"
        f"{'GFLOP':>9}{'/ e2e':>7}{'/ 2-path':>9} |{'peak MiB':>9}{'/ e2e':>7}{'/ 2-path':>9}",
    ]
    for row in rows:
        times = "".join(f"{value:9.1f}" for value in row["ms"].values())
        ratios = "|".join(
            " " + "".join(f"{value:6.2f}" for value in row["time_ratio"][other].values()) for other in REFERENCES
        )
        counted, peak = ("".join(f"{v:8.2f}" for v in row[key].values()) for key in ("flops_ratio", "peak_ratio"))
        lines.append(
            f"{row['contender']:<13}{times}{row['images_per_second']:9.1f} |{ratios}|"
            f"{row['flops'] / 1e9:9.2f}{counted} |{row['peak_bytes'] / 2**20:9.1f}{peak}"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None, cases: Sequence[Case] = CASES) -> int:
    """The command line; returns the exit code: 1 if a case was refused."""
    options = _parse(arguments, [case.name for case in cases])
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("--device cuda: torch sees no CUDA device here; leave it out to measure on the CPU", file=sys.stderr)
        return 2
    machine = facts(device, options.commit)
    print(heading(machine, device))
    rows: list[dict[str, Any]] = []
    refused = False
    for case in cases:
        if options.cases and case.name not in options.cases:
            continue
        on_gpu = device.type == "cuda"
        batch = options.batch or (case.gpu_batch if on_gpu else case.batch)
        rounds = options.rounds or (GPU_ROUNDS if on_gpu else case.rounds)
        try:
            with arithmetic("float32"):  # the two-path schedule, too: the others have it of themselves
                measured = measure_case(case, batch, rounds, device)
        except WrongGradientsError as error:
            print(f"\nrefused: {error}", flush=True)
            refused = True
            continue
        print("\n" + table(measured), flush=True)
        rows += [machine | row for row in measured]
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return int(refused)


def _parse(arguments: Sequence[str] | None, names: Sequence[str]) -> argparse.Namespace:
    def positive(text: str) -> int:
        if int(text) < 1:
            raise argparse.ArgumentTypeError(f"{text} must be at least 1")
        return int(text)

    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.steps", description="Training steps side by side: time, FLOPs and peak memory."
    )
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--cases", nargs="+", choices=names, metavar="CASE", help=f"of {', '.join(names)}; all")
    parser.add_argument("--rounds", type=positive, help="measured rounds per case")
    parser.add_argument("--batch", type=positive, help="images per step")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there")
    parser.add_argument("--commit", help="recorded where the sources are a copy without their repository")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
