"""The standard round on a GPU machine: its own torch, no network, one command, under ten minutes.

    python -m benchmarks.gpu [--more] [--dry-run] [--commit ID]

Makes build/gpu-env, an environment that sees this Python's own packages, installs mlaan there, then runs on CUDA: the
tests marked gpu, every kernel under compute-sanitizer, the micro benchmarks, the steps of the big networks and those by
each executor. --more is a second round of as long: the steps that the first has no time for, and how fast images
arrive. A stage has its time and is ended when that is over; one that fails hides no other, and the exit code is 1 if
any did. Rows go to benchmarks/results/<date>-<gpu>-<commit>[-more].json; at the end stands one table against the
design's targets. Needs nothing but the standard library.
"""

import argparse
import importlib.util
import json
import os
import re
import shlex
import shutil
import signal
import site
import statistics
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks import ROOT, targets

BUILD = ROOT / "build"
ENVIRONMENT = BUILD / "gpu-env"
FACTS, MICRO, STEPS, EXECUTORS, DATA = (
    BUILD / f"gpu-{name}.json" for name in ("machine", "micro", "steps", "executors", "data")
)
TESTS = BUILD / "gpu-tests.xml"
RESULTS = ROOT / "benchmarks" / "results"
SANITIZER = "compute-sanitizer"
WORKERS = 8
"""Processes for the tests, which wait for Triton's compiler most of the time."""
SPARE = 30
"""Seconds that a benchmark is given to end by itself before it is ended."""


@dataclass(frozen=True)
class Stage:
    """One command of the round, run in the repository's root.

    Attributes:
        seconds: that it may take.
        tool: a program without which it is not run.
    """

    name: str
    command: tuple[str, ...]
    seconds: int
    tool: str | None = None


def stages(commit: str | None = None, *, more: bool = False) -> list[Stage]:
    """The round's commands, in order; `commit` is handed to those that record it. With `more`, the second round's."""
    python = str(ENVIRONMENT / "bin" / "python")
    recorded = ("--commit", commit) if commit else ()
    install = (python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index")
    test = (python, "-m", "pytest", "-q", "-p", "no:cacheprovider")
    parallel = ("-n", str(WORKERS)) if importlib.util.find_spec("xdist") else ()
    # without torch's own store of memory, so that the tool sees where each tensor ends
    watch = ("env", "PYTORCH_NO_CUDA_MEMORY_CACHING=1", SANITIZER, "--error-exitcode", "1", "--tool")
    watched = (python, "-m", "benchmarks.sanitized")

    def steps(name: str, seconds: int, module: str, rows: Path, *which: str) -> Stage:
        command = (python, "-m", f"benchmarks.{module}", *which, "--budget", str(seconds - SPARE), "--json", str(rows))
        return Stage(name, (*command, *recorded), seconds)

    ready = [
        # without pip: this Python's own serves, and making another needs files that some systems pack apart
        Stage(
            "environment",
            (sys.executable, "-m", "venv", "--system-site-packages", "--without-pip", str(ENVIRONMENT)),
            15,
        ),
        Stage("install", (*install, "--no-deps", "--no-build-isolation", "-e", "."), 60),
        Stage("machine", (python, "-m", "benchmarks.machine", "--device", "cuda", "--json", str(FACTS), *recorded), 15),
    ]
    if more:
        loaders = (python, "-m", "benchmarks.data", "--device", "cuda", "--workers", "16", "--images", "6000")
        return [
            *ready,
            steps("steps", 380, "imagenet", STEPS, "--more"),
            Stage("data", (*loaders, "--rounds", "3", "--json", str(DATA), *recorded), 120),
        ]
    micro = 85
    return [
        *ready,
        Stage("tests", (*test, *parallel, "-m", "gpu", f"--junitxml={TESTS}", "tests"), 140),
        Stage("memcheck", (*watch, "memcheck", *watched), 35, SANITIZER),
        Stage("racecheck", (*watch, "racecheck", *watched), 35, SANITIZER),
        Stage(
            "micro",
            (
                *(*test, "benchmarks/micro", "-k", "cuda", f"--benchmark-json={MICRO}"),
                *(f"--tests-report={TESTS}", f"--budget={micro - SPARE}"),
            ),
            micro,
        ),
        steps("steps", 135, "imagenet", STEPS),
        steps("executors", 75, "executors", EXECUTORS),
    ]


def find_tool(name: str) -> str | None:
    """Where a program is, also where CUDA's own folder is not on the PATH."""
    return shutil.which(name, path=_path())


def _path() -> str:
    # cmake and ninja may live beside this Python
    here = [str(ENVIRONMENT / "bin"), str(Path(sys.executable).parent), os.environ.get("PATH", "")]
    return os.pathsep.join([*here, "/usr/local/cuda/bin", "/usr/local/cuda/compute-sanitizer"])


def share_packages() -> Path:
    """Let the new environment see this Python's packages, also where this Python is a virtual environment itself.

    Such a Python's packages are not the "system's" that venv can share; a .pth file in the new environment adds them.
    """
    places = {"base": str(ENVIRONMENT), "platbase": str(ENVIRONMENT)}
    packages = Path(sysconfig.get_path("purelib", "venv", places))
    packages.mkdir(parents=True, exist_ok=True)
    listing = packages / "parent.pth"
    listing.write_text("\n".join(site.getsitepackages()) + "\n", encoding="utf-8")
    return listing


def run_stage(stage: Stage) -> tuple[bool, float]:
    """Run a command, its output as it comes, and end it with all that it started when its time is over.

    Returns:
        Whether it succeeded, and its seconds.
    """
    print(f"\n== {stage.name}: {shlex.join(stage.command)}", flush=True)
    start = time.monotonic()
    try:
        process = subprocess.Popen(stage.command, cwd=ROOT, env=os.environ | {"PATH": _path()}, start_new_session=True)
    except OSError as error:
        print(error, file=sys.stderr)
        return False, time.monotonic() - start
    try:
        good = process.wait(stage.seconds) == 0
    except subprocess.TimeoutExpired:
        print(f"{stage.name}: ended, its {stage.seconds} s are over", file=sys.stderr)
        good = False
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return good, time.monotonic() - start


def collect() -> list[dict[str, Any]]:
    """The rows of the step and micro benchmarks, each with the machine's facts."""
    machine = _load(FACTS) or {}
    rows = [machine | row for file in (STEPS, EXECUTORS, DATA) for row in _load(file) or []]
    for entry in (_load(MICRO) or {}).get("benchmarks", []):
        fifths = statistics.quantiles(entry["stats"]["data"], n=5, method="inclusive")
        times = {"p20": fifths[0], "p50": entry["stats"]["median"], "p80": fifths[3]}
        row = {"benchmark": "micro", "case": entry["name"], "ms": {p: 1e3 * t for p, t in times.items()}}
        rows.append(machine | row | entry["extra_info"])
    return rows


def write(rows: Sequence[dict[str, Any]], folder: Path, *, more: bool = False) -> Path:
    """Write the rows to <date>-<gpu>-<commit>.json in `folder`, the second round's beside it; returns that file."""
    facts = [str(rows[0].get(key) or "unknown") if rows else "unknown" for key in ("device", "commit")]
    words = [re.sub(r"[^a-z0-9]+", "-", fact.lower()).strip("-") for fact in facts]
    target = folder / f"{'-'.join([date.today().isoformat(), *words, *(['more'] if more else [])])}.json"
    folder.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(list(rows), indent=1) + "\n", encoding="utf-8")
    return target


def table(rows: Sequence[dict[str, Any]]) -> str:
    """All rows in one table; ratios are medians."""
    lines = [
        f"{'':<70}{'ms p20':>9}{'p50':>9}{'p80':>9} |{'time / e2e':>11}{'/ fused e2e':>12}{'/ compiled':>11}"
        f"{'/ two-path':>11}{'/ eager':>8} |{'peak / e2e':>11} | more"
    ]
    rivals = {"end-to-end": 11, "end-to-end fused": 12, "compiled": 11, "two-path": 11, "eager": 8}
    for row in rows:
        times = "".join(f"{value:9.3f}" for value in row["ms"].values())
        line = f"{row['case']} {row['contender']}" if row["benchmark"] != "micro" else row["case"]
        ratios = [(row.get("time_ratio", {}).get(rival), width) for rival, width in rivals.items()]
        cells = "".join(_cell(ratio and ratio["median"], width) for ratio, width in ratios)
        line = f"{line:<70}{times} |{cells} |{_cell(row.get('peak_ratio', {}).get('end-to-end'), 11)} |"
        lines.append(" ".join([line, *_more(row)]))
    return "\n".join(lines)


def _more(row: dict[str, Any]) -> list[str]:
    """What only some rows have: the share of the floor's speed, streams, loaders, why a row is not what it says."""
    said = [f"{row['share']:.0%} of the floor's speed"] if "share" in row else []
    said += [f"streams {row['lanes']}"] if "lanes" in row else []
    said += [f"overlap {row['overlap']:.0%}"] if "overlap" in row else []
    said += [f"{row['images_per_second']:.0f} img/s, steps waited {row['waited']:.0%}"] if "waited" in row else []
    return [*said, f"FAILED: {row['obstacle']}"] if row.get("obstacle") else said


def _cell(value: float | None, width: int) -> str:
    return " " * width if value is None else f"{value:{width}.2f}"


def main(arguments: Sequence[str] | None = None, run: Callable[[Stage], tuple[bool, float]] = run_stage) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description="The standard round on a GPU.")
    parser.add_argument("--more", action="store_true", help="the steps that the round has no time for, alone")
    parser.add_argument("--dry-run", action="store_true", help="print the commands and run none")
    parser.add_argument("--commit", help="recorded where the sources are a copy without their repository")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FOLDER", help="where the rows go")
    options = parser.parse_args(arguments)
    planned = stages(options.commit, more=options.more)
    if options.dry_run:
        print("\n".join(shlex.join(stage.command) for stage in planned))
        return 0
    if obstacle := _obstacle():
        print(f"no GPU round: {obstacle}", file=sys.stderr)
        return 1
    for leftover in (FACTS, MICRO, STEPS, EXECUTORS, DATA, TESTS):
        leftover.unlink(missing_ok=True)
    share_packages()
    outcomes = {}
    for stage in planned:
        if stage.tool and not find_tool(stage.tool):
            outcomes[stage.name] = f"not run: {stage.tool} is not on this machine"
            continue
        good, seconds = run(stage)
        outcomes[stage.name] = f"{'passed' if good else 'FAILED'} in {seconds:.0f} s"
    rows = collect()
    print(f"\n{write(rows, options.results, more=options.more)}\n\n{table(rows)}\n\n{targets.table(rows)}\n")
    for name, outcome in outcomes.items():
        print(f"{name:<12} {outcome}")
    return int(any(outcome.startswith("FAILED") for outcome in outcomes.values()))


def _obstacle() -> str | None:
    """Why nothing can be measured with this Python, and what to do; None if it can."""
    try:
        import torch
    except ImportError:
        return f"{sys.executable} has no torch: name the Python that has it, make gpu PYTHON=..."
    return None if torch.cuda.is_available() else "torch sees no CUDA device here; --dry-run shows the commands"


def _load(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


if __name__ == "__main__":
    sys.exit(main())
