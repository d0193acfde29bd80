"""`mlaan doctor`: what is installed, what is active, what is missing and how to get it."""

import argparse
import platform

import torch

from mlaan.build import choose_device
from mlaan.cli.arguments import Overrides
from mlaan.cli.machines import profile_path
from mlaan.config import gib
from mlaan.errors import UserError
from mlaan.observe.environment import cpu_name, version
from mlaan.observe.words import counted
from mlaan.plan.machine import measure_machine
from mlaan_kernels import library
from mlaan_kernels.choice import triton_obstacle

_NEEDED = {
    "mlaan": "pip install . in the source folder",
    "torchvision": "pip install torchvision",
    "safetensors": "pip install safetensors",
}
_OPTIONAL = {
    "scikit-learn": "the data set digits",
    "rich": "the live table on a terminal",
    "matplotlib": "report.png",
    "tensorboard": "TensorBoard logs",
    "triton": "GPU kernels",
    "timm": "backbones timm:NAME",
}


def run(arguments: argparse.Namespace, overrides: Overrides) -> int:
    """Prints what it finds; with --measure, what this machine can do, which `mlaan plan` then goes by."""
    if arguments.measure:
        return _measure()
    missing: list[str] = []
    print("machine")
    _line("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    _line("processor", f"{cpu_name()}, {counted(torch.get_num_threads(), 'thread')}")
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        _line(f"cuda:{index}", f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB")
    if not torch.cuda.device_count():
        built = "torch is built without CUDA" if torch.version.cuda is None else "torch sees none"
        _line("GPU", f"none ({built}): runs use the CPU")

    print("\npackages")
    _line("torch", f"{torch.__version__}, CUDA {torch.version.cuda or 'none'}")
    for name, fix in _NEEDED.items():
        _line(name, version(name) or "missing")
        if version(name) is None:
            missing.append(fix)
    for name, purpose in _OPTIONAL.items():
        _line(name, version(name) or f"missing, for {purpose}")
        if version(name) is None:
            missing.append(f"pip install {name}")

    print("\nnative libraries")
    for status in library.status():
        _line(status.name, f"{status.state}: {status.detail}")
        if status.name == "cpu" and status.state in ("missing", "failed"):
            missing.append("pip install --no-build-isolation . in the source folder, for the native operators")

    print("\nTriton kernels")
    devices = [torch.device("cuda", index) for index in range(torch.cuda.device_count())] or [torch.device("cpu")]
    for device in devices:
        obstacle = triton_obstacle(device, torch.float32)
        _line(str(device), f"PyTorch's own kernels run instead: {obstacle}" if obstacle else "they run")

    print("\nto get what is missing" if missing else "\nnothing is missing")
    for fix in missing:
        print(f"  {fix}")
    return 0


def _measure() -> int:
    """Takes the figures of the device that runs use, prints them, and keeps them."""
    device, path = choose_device("auto"), profile_path()
    machine = measure_machine(device)
    print(f"{machine.name}, {gib(machine.memory)}")
    rates = [f"{rate / 1e9:,.0f} GFLOP/s in {precision}" for precision, rate in machine.flops]
    _line("arithmetic", ", ".join(rates))
    _line("memory", f"{machine.bandwidth / 1e9:,.1f} GB/s, read and written")
    _line("an operator", f"{machine.launch * 1e6:,.1f} microseconds at least")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(machine.to_json() + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror}: set XDG_CACHE_HOME to a folder that can be written"
        ) from None
    _line("kept in", f"{path}, for `mlaan plan`; delete it to go without")
    return 0


def _line(name: str, text: str) -> None:
    print(f"  {name:<14}{text}")
