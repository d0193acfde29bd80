"""The standard round on a GPU machine: its own torch, no network, one command.

    python -m benchmarks.gpu [--dry-run] [--commit ID]

Makes build/gpu-env, an environment that sees this Python's own packages, installs mlaan there, then runs the tests
marked gpu, the micro benchmarks and the step benchmarks on CUDA. A stage that fails hides no other; the exit code is
1 if any did. Rows go to benchmarks/results/<date>-<gpu>-<commit>.json. Needs nothing but the standard library.
"""

import argparse
import json
import os
import re
import shlex
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

from benchmarks import ROOT

BUILD = ROOT / "build"
ENVIRONMENT = BUILD / "gpu-env"
FACTS, MICRO, STEPS = (BUILD / f"gpu-{name}.json" for name in ("machine", "micro", "steps"))
RESULTS = ROOT / "benchmarks" / "results"


@dataclass(frozen=True)
class Stage:
    """One command of the round, run in the repository's root."""

    name: str
    command: tuple[str, ...]


def stages(commit: str | None = None) -> list[Stage]:
    """The round's commands, in order; `commit` is handed to those that record it."""
    python = str(ENVIRONMENT / "bin" / "python")
    recorded = ("--commit", commit) if commit else ()
    install = (python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index")
    test = (python, "-m", "pytest", "-q", "-p", "no:cacheprovider")
    measure = (python, "-m", "benchmarks.steps", "--device", "cuda")
    return [
        # without pip: this Python's own serves, and making another needs files that some systems pack apart
        Stage(
            "environment", (sys.executable, "-m", "venv", "--system-site-packages", "--without-pip", str(ENVIRONMENT))
        ),
        Stage("install", (*install, "--no-deps", "--no-build-isolation", "-e", ".")),
        Stage("machine", (python, "-m", "benchmarks.machine", "--device", "cuda", "--json", str(FACTS), *recorded)),
        Stage("tests", (*test, "-m", "gpu", "tests")),
        Stage("micro", (*test, "benchmarks/micro", "-k", "cuda", f"--benchmark-json={MICRO}")),
        Stage("steps", (*measure, "--json", str(STEPS), *recorded)),
    ]


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
    """Run a command, its output as it comes; whether it succeeded, and its seconds."""
    print(f"\n== {stage.name}: {shlex.join(stage.command)}", flush=True)
    # cmake and ninja may live beside this Python
    path = os.pathsep.join([str(ENVIRONMENT / "bin"), str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    start = time.monotonic()
    try:
        good = subprocess.run(stage.command, cwd=ROOT, env=os.environ | {"PATH": path}).returncode == 0
    except OSError as error:
        print(error, file=sys.stderr)
        good = False
    return good, time.monotonic() - start


def collect() -> list[dict[str, Any]]:
    """The rows of the step and micro benchmarks, each with the machine's facts."""
    machine = _load(FACTS) or {}
    rows = [machine | row for row in _load(STEPS) or []]
    for entry in (_load(MICRO) or {}).get("benchmarks", []):
        fifths = statistics.quantiles(entry["stats"]["data"], n=5, method="inclusive")
        times = {"p20": fifths[0], "p50": entry["stats"]["median"], "p80": fifths[3]}
        row = {"benchmark": "micro", "case": entry["name"], "ms": {p: 1e3 * t for p, t in times.items()}}
        rows.append(machine | row | entry["extra_info"])
    return rows


def write(rows: Sequence[dict[str, Any]], folder: Path) -> Path:
    """Write the rows to <date>-<gpu>-<commit>.json in `folder`, and return that file."""
    facts = [str(rows[0].get(key) or "unknown") if rows else "unknown" for key in ("device", "commit")]
    words = [re.sub(r"[^a-z0-9]+", "-", fact.lower()).strip("-") for fact in facts]
    target = folder / f"{'-'.join([date.today().isoformat(), *words])}.json"
    folder.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(list(rows), indent=1) + "\n", encoding="utf-8")
    return target


def table(rows: Sequence[dict[str, Any]]) -> str:
    """All rows in one table; ratios are medians."""
    lines = [
        f"{'':<44}{'ms p20':>9}{'p50':>9}{'p80':>9} |{'time / e2e':>11}{'/ two-path':>11} |"
        f"{'FLOPs / e2e':>12} |{'peak / e2e':>11} | floor reached"
    ]
    for row in rows:
        times = "".join(f"{value:9.2f}" for value in row["ms"].values())
        line = f"{row['case']} {row.get('contender', '')}".ljust(44) + times + " |"
        if row["benchmark"] == "steps":
            ratios = [row["time_ratio"][other]["median"] for other in ("end-to-end", "two-path")]
            line += f"{ratios[0]:11.2f}{ratios[1]:11.2f} |{row['flops_ratio']['end-to-end']:12.2f} |"
            line += f"{row['peak_ratio']['end-to-end']:11.2f} |"
        else:
            share = f"{row['share']:.0%} of copy bandwidth" if "share" in row else ""
            line += f"{'':22} |{'':12} |{'':11} | {share}"
        lines.append(line)
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None, run: Callable[[Stage], tuple[bool, float]] = run_stage) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description="The standard round on a GPU.")
    parser.add_argument("--dry-run", action="store_true", help="print the commands and run none")
    parser.add_argument("--commit", help="recorded where the sources are a copy without their repository")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FOLDER", help="where the rows go")
    options = parser.parse_args(arguments)
    planned = stages(options.commit)
    if options.dry_run:
        print("\n".join(shlex.join(stage.command) for stage in planned))
        return 0
    if obstacle := _obstacle():
        print(f"no GPU round: {obstacle}", file=sys.stderr)
        return 1
    for leftover in (FACTS, MICRO, STEPS):
        leftover.unlink(missing_ok=True)
    share_packages()
    outcomes = {stage.name: run(stage) for stage in planned}
    rows = collect()
    print(f"\n{write(rows, options.results)}\n\n{table(rows)}\n")
    for name, (good, seconds) in outcomes.items():
        print(f"{name:<12} {'passed' if good else 'FAILED'} in {seconds:.0f} s")
    return int(not all(good for good, _ in outcomes.values()))


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
