"""What a measurement was taken on: these facts stand in every recorded row.

    python -m benchmarks.machine --device cuda

prints them as JSON.
"""

import argparse
import json
import subprocess
from pathlib import Path
from typing import Any

import torch

from benchmarks import ROOT
from mlaan.observe.environment import cpu_name, version


def facts(device: torch.device, commit: str | None = None) -> dict[str, Any]:
    """Device, driver (None on a CPU), threads, library versions, and the commit measured.

    Args:
        commit: recorded where the sources are a copy without their repository.
    """
    on_gpu = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if on_gpu else cpu_name(),
        "device_type": device.type,
        "driver": _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader") if on_gpu else None,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "triton": version("triton"),
        "commit": commit or _commit(),
    }


def _commit() -> str:
    """The short id of the commit checked out, "+changes" if tracked files differ from it; "unknown" without git."""
    commit = _output("git", "rev-parse", "--short", "HEAD")
    if commit is None:
        return "unknown"
    return commit + ("+changes" if _output("git", "status", "--porcelain", "--untracked-files=no") else "")


def _output(*command: str) -> str | None:
    """The first line that a command prints; None if it cannot run, fails or prints nothing."""
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = done.stdout.strip().splitlines()
    return lines[0].strip() if done.returncode == 0 and lines else None


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.machine", description="Facts of this machine as JSON.")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write them there, too")
    parser.add_argument("--commit", help="recorded where the sources are a copy without their repository")
    options = parser.parse_args()
    text = json.dumps(facts(options.device, options.commit), indent=1)
    print(text)
    if options.json:
        options.json.write_text(text + "\n", encoding="utf-8")
