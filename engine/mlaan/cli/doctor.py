"""`mlaan doctor`: what is installed, what is active, what is missing and how to get it."""

import argparse
import platform

import torch

from mlaan.cli.arguments import Overrides
from mlaan.observe.environment import cpu_name, version
from mlaan.observe.words import counted
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
    """Prints what it finds."""
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

    print("\nTriton kernels")
    devices = [torch.device("cuda", index) for index in range(torch.cuda.device_count())] or [torch.device("cpu")]
    for device in devices:
        obstacle = triton_obstacle(device, torch.float32)
        _line(str(device), f"PyTorch's own kernels run instead: {obstacle}" if obstacle else "they run")

    print("\nto get what is missing" if missing else "\nnothing is missing")
    for fix in missing:
        print(f"  {fix}")
    return 0


def _line(name: str, text: str) -> None:
    print(f"  {name:<14}{text}")
