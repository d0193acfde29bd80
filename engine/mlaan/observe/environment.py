"""On what a run ran: interpreter, libraries, processor, commit. No names of people, hosts or folders."""

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

PACKAGES = (
    "mlaan",
    "torch",
    "torchvision",
    "triton",
    "numpy",
    "scikit-learn",
    "tensorboard",
    "matplotlib",
    "rich",
)
"""Distributions whose versions are recorded; those that are not installed are None."""

_MATTERS = ("torch", "threads", "device", "cpu", "gpus", "kernels")


def environment(device: torch.device) -> dict[str, Any]:
    """What env.json holds."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": cpu_name(),
        "cpu_cores": os.cpu_count(),
        "gpus": gpus,
        "device": str(device),
        "threads": torch.get_num_threads(),
        "packages": {name: version(name) for name in PACKAGES},
        "commit": _commit(),
    }


def differences(recorded: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What is not as it was and may change results in their last bits, in words."""
    pairs = ((key, recorded.get(key), now.get(key)) for key in _MATTERS)
    return [f"{key} was {before}, is {after}" for key, before, after in pairs if before != after]


def version(distribution: str) -> str | None:
    """The installed version of a distribution; None where there is none."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def cpu_name() -> str:
    """The processor's name as its maker writes it; the architecture where that is not known."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def peak_memory(device: torch.device) -> int:
    """Bytes at the peak so far: allocated by torch on a GPU, resident in the whole process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _commit() -> dict[str, Any] | None:
    """The commit this source was checked out from, and whether it was edited since; or None."""
    here = Path(__file__)

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", here.parent, *arguments], capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    # Inside another project's repository (an environment folder, say) this file is not tracked.
    if git("ls-files", "--error-unmatch", here.name) is None:
        return None
    return {
        "id": git("rev-parse", "HEAD"),
        "dirty": bool(git("status", "--porcelain", "--untracked-files=no")),
    }
