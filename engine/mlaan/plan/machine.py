"""What a machine can do: its memory, how fast it copies and multiplies, what starting an operator costs."""

import json
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mlaan.models.cost import Device

GIB = 2**30
WORKSPACE = GIB
"""Bytes to leave free on a GPU for cuDNN's and cuBLAS's workspaces and what the allocator cannot use."""

PRECISIONS = {"float32": torch.float32, "tf32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Machine:
    """Figures of one GPU, or of a CPU with all its threads.

    Attributes:
        name: as people call it.
        kind: "cuda" or "cpu".
        memory: bytes that torch can hand out.
        workspace: bytes of them that libraries take beside a step's tensors.
        bandwidth: bytes per second, read and written counted each, of operators that do little arithmetic.
        flops: floating-point operations per second of convolutions and matrix products, by precision.
        launch: seconds until an operator that has next to nothing to do is done.
    """

    name: str
    kind: Device
    memory: int
    workspace: int
    bandwidth: float
    flops: tuple[tuple[str, float], ...]
    launch: float

    def peak(self, precision: str) -> float:
        """FLOP/s in "float32", "tf32", "bfloat16" or "float16"; where it has none of that, in float32."""
        known = dict(self.flops)
        return known.get(precision, known["float32"])

    def to_json(self) -> str:
        """For `from_json`."""
        return json.dumps(asdict(self) | {"flops": dict(self.flops)}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> "Machine":
        """Out of `to_json`'s text.

        Raises:
            ValueError: it is no such text.
        """
        try:
            known: dict[str, Any] = json.loads(text)
            known["flops"] = tuple(known["flops"].items())
            machine = cls(**known)
            machine.peak("float32")
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a machine's figures: {error}") from error
        return machine


def _gpu(name: str, memory: float, bandwidth: float, float32: float, tf32: float, half: float) -> Machine:
    """`memory` in GiB as torch sees it, `bandwidth` in TB/s, the rest in TFLOP/s."""
    rates = {"float32": float32, "tf32": tf32, "bfloat16": half, "float16": half}
    flops = tuple((precision, rate * 1e12) for precision, rate in rates.items())
    return Machine(name, "cuda", int(memory * GIB), WORKSPACE, bandwidth * 1e12, flops, 5e-6)


# NVIDIA's data sheets: H100 SXM5 80 GB (3.35 TB/s; dense TFLOP/s 67 float32, 494 TF32, 989 bfloat16), A100 SXM4 80 GB
# (2.04 TB/s; 19.5, 156, 312) and GeForce RTX 4090 (1.01 TB/s; 82.6, 82.6, 165 with float32 sums). Of these such cards
# reach about nine tenths in a copy and eight tenths in a large matrix product: an H100 gave 3.0 TB/s and 798 TFLOP/s.
# A launch is what PyTorch's host side takes for an operator. "cpu" is a guess at a desktop with eight AVX2 cores.
MACHINES = {
    "h100": _gpu("NVIDIA H100 SXM", 79, 3.0, 54, 395, 798),
    "a100": _gpu("NVIDIA A100 SXM 80 GB", 79, 1.8, 15.6, 125, 250),
    "rtx4090": _gpu("NVIDIA GeForce RTX 4090", 23.5, 0.91, 66, 66, 132),
    "cpu": Machine("eight CPU cores", "cpu", 16 * GIB, 0, 40e9, (("float32", 400e9),), 5e-6),
}


def measure_machine(device: torch.device, seconds: float = 3.0) -> Machine:
    """Take this machine's figures, with the threads that PyTorch has.

    Convolutions in each precision give FLOP/s, a BatchNorm with a ReLU gives the bandwidth, a tiny network what an
    operator costs that has nothing to do; each forward and backward.

    Args:
        device: a CPU or a CUDA device.
        seconds: about how long it may take in all.
    """
    kind: Device = "cuda" if device.type == "cuda" else "cpu"
    budget = seconds / 6
    flops = [(precision, _convolution(precision, device, budget)) for precision in _precisions(kind)]
    if kind == "cuda":
        facts = torch.cuda.get_device_properties(device)
        name, memory, workspace = facts.name, facts.total_memory, WORKSPACE
    else:
        name, memory, workspace = f"{platform.processor() or platform.machine()} CPU", _memory(), 0
    return Machine(name, kind, memory, workspace, _bandwidth(device, budget), tuple(flops), _launch(device, budget))


def _precisions(kind: Device) -> list[str]:
    return ["float32", "tf32", "bfloat16", "float16"] if kind == "cuda" else ["float32", "bfloat16"]


def _convolution(precision: str, device: torch.device, budget: float) -> float:
    """FLOP/s of a 3x3 and a 1x1 convolution, forward and both ways back."""
    images, size = (256, 56) if device.type == "cuda" else (16, 16)
    dtype = PRECISIONS[precision]
    layers = [nn.Conv2d(64, 64, 3, padding=1, bias=False), nn.Conv2d(256, 64, 1, bias=False)]
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    flops = taken = 0.0
    try:
        for layer in layers:
            layer.to(device, dtype)
            x = torch.randn(images, layer.in_channels, size, size, device=device, dtype=dtype, requires_grad=True)
            y = layer(x)
            grad = torch.randn_like(y)
            taken += _time(partial(_there_and_back, layer, x, [x, layer.weight], grad), device, budget / 2)
            flops += 3 * 2 * y.numel() * layer.weight[0].numel()
    finally:
        torch.backends.cudnn.allow_tf32 = before
    return flops / taken


def _bandwidth(device: torch.device, budget: float) -> float:
    """Bytes per second of a BatchNorm with a ReLU, forward and back, on maps of a training step's size.

    They read and write a map three and two times forward, six and three times back.
    """
    shape = (256, 64, 56, 56) if device.type == "cuda" else (64, 16, 32, 32)
    layer = nn.Sequential(nn.BatchNorm2d(shape[1]), nn.ReLU()).to(device)
    x = torch.randn(shape, device=device, requires_grad=True)
    grad = torch.randn_like(x)
    taken = _time(lambda: _there_and_back(layer, x, [x, *layer.parameters()], grad), device, budget)
    return 13 * 4 * x.numel() / taken


def _there_and_back(layer: nn.Module, x: Tensor, targets: list[Tensor], grad: Tensor) -> None:
    torch.autograd.grad(layer(x), targets, grad)


def _launch(device: torch.device, budget: float) -> float:
    """Per operator of a small network's step: six layers of four operators forward, and as many again backward."""
    layers = [
        layer
        for _ in range(6)
        for layer in (nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Threshold(0, 0))
    ]
    net = nn.Sequential(*layers).to(device)
    x = torch.randn(4, 8, 4, 4, device=device)
    weights = list(net.parameters())
    return _time(lambda: torch.autograd.grad(net(x).sum(), weights), device, budget) / (2 * len(layers))


def _time(run: Callable[[], object], device: torch.device, budget: float) -> float:
    """Seconds of a call, the least of many: what other programs take is not the machine's. Several in a row on a device
    that runs behind the host.
    """
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    for _ in range(2):
        run()
    repeats = 10 if device.type == "cuda" else 1
    taken: list[float] = []
    end = time.perf_counter() + budget
    while len(taken) < 3 or time.perf_counter() < end:
        wait()
        start = time.perf_counter()
        for _ in range(repeats):
            run()
        wait()
        taken.append((time.perf_counter() - start) / repeats)
    return min(taken)


def _memory() -> int:
    """Bytes of main memory, as /proc/meminfo says; without one, what the preset has."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            return int(file.readline().split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        return MACHINES["cpu"].memory
