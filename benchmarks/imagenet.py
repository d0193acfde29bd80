"""Whole training steps of the big networks with the same kernels for all: the rows behind the design's targets.

    python -m benchmarks.imagenet [--more] [--cases resnet50-4-light ...] [--device cuda] [--budget S] [--json FILE]

bfloat16 autocast and channels_last throughout. A case gets a row only if the losses of all agree where they must. Where
a batch does not fit into the device's memory, the case starts again with half of it. --more takes the cases that the
round has no time for: torch.compile needs minutes, and the deepest network's blocks are modules each.
"""

import copy
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch

from benchmarks.contenders import LEARNING_RATE, MOMENTUM, WEIGHT_DECAY, Contender, EndToEnd, step_peak
from benchmarks.measure import Batch, interleaved
from benchmarks.running import (
    Row,
    halve_until_it_fits,
    make_batches,
    make_parser,
    make_rows,
    require_agreement,
    run_cases,
)
from exact.compare import judge_of
from exact.two_path import TwoPath
from mlaan import MLAAN, Backbone, Engine
from mlaan.models import BACKBONES
from mlaan_kernels.blocks import fuse

PRECISION = torch.bfloat16
SEGMENTS_TRIED = (3, 4, 6, 8, 12, 16)
BATCHES, WARMUP = 3, 3
Rival = Literal["end-to-end", "end-to-end fused", "checkpointed", "two-path", "compiled"]
ALL: tuple[Rival, ...] = ("end-to-end", "end-to-end fused", "checkpointed", "two-path")


@dataclass(frozen=True)
class Net:
    """One network, how it is cut and supervised, and whom it is put beside.

    Attributes:
        name: begins with the network's own.
        backbone: makes it.
        cuts: as in `mlaan.Engine`: "flops" for time, "bytes" for memory.
        batch: images per step.
        rivals: end-to-end in plain PyTorch, with our fused blocks, those checkpointed, compiled; and the two-path
            schedule with our fused blocks.
    """

    name: str
    backbone: Callable[[], Backbone]
    modules: int
    preset: Literal["paper", "light", "fast"]
    cuts: str
    batch: int
    rivals: tuple[Rival, ...] = ALL
    size: int = 224
    classes: int = 1000


_RESNET50, _RESNET101, _RESNET152 = (
    partial(BACKBONES[name], 1000, 3) for name in ("resnet50", "resnet101", "resnet152")
)
NETS = (
    Net("resnet50-4-light", _RESNET50, 4, "light", "flops", 256),
    Net("resnet101-8-light", _RESNET101, 8, "light", "bytes", 256),
    Net("resnet101-33-paper", _RESNET101, 33, "paper", "even", 64, ("end-to-end fused", "two-path")),
    Net("resnet101-33-light", _RESNET101, 33, "light", "even", 256, ("end-to-end", "end-to-end fused")),
    Net("resnet50-8-light", _RESNET50, 8, "light", "flops", 256, ("end-to-end fused",)),
    Net("resnet101-4-light", _RESNET101, 4, "light", "flops", 256, ("end-to-end fused",)),
)
_OTHERS: tuple[Rival, ...] = ("end-to-end", "checkpointed", "compiled")
MORE = (
    Net("resnet50-4-light-compiled", _RESNET50, 4, "light", "flops", 256, ("compiled",)),
    Net("resnet152-50-light", _RESNET152, 50, "light", "even", 256, ("end-to-end", "checkpointed")),
    Net("resnet50-16-fast", _RESNET50, 16, "fast", "even", 256, ("end-to-end", "end-to-end fused")),
    Net("resnet50-8-light-others", _RESNET50, 8, "light", "flops", 256, _OTHERS),
    Net("resnet101-4-light-others", _RESNET101, 4, "light", "flops", 256, _OTHERS),
    Net("resnet101-8-light-compiled", _RESNET101, 8, "light", "flops", 256, ("compiled",)),
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
        made = contenders[rival] = EndToEnd(copy.deepcopy(backbone), "bfloat16", fused)
        if rival == "checkpointed":
            blocks = len(made.backbone.blocks)
            segments = made.split_best(sorted({min(count, blocks) for count in SEGMENTS_TRIED}), batch)
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
        require_agreement(name, what, float(value), float(right))


def measure(net: Net, batch: int, rounds: int, device: torch.device) -> list[Row]:
    """A row per contender, as plain data.

    Raises:
        WrongLossesError: nothing was measured.
        torch.OutOfMemoryError, StepMemoryError: the batch does not fit.
    """
    batches = make_batches(BATCHES, batch, net.size, net.classes, device)
    contenders, segments = make_all(net, batches[0])
    for made in contenders.values():  # momenta and chosen kernels are there before a peak is taken
        made.step(*batches[0])
    peaks = {name: step_peak(made, batches[0]) for name, made in contenders.items() if name != "compiled"}
    times = interleaved({name: made.step for name, made in contenders.items()}, batches, rounds, WARMUP)
    about = {
        "benchmark": "imagenet",
        "case": net.name,
        "modules": net.modules,
        "preset": net.preset,
        "cuts": net.cuts,
        "checkpointed_segments": segments,
        "shape": [batch, 3, net.size, net.size],
        "dtype": "bfloat16 autocast",
    }
    return list(make_rows(about, times, peaks).values())


def measure_what_fits(net: Net, batch: int, rounds: int, device: torch.device) -> list[Row]:
    """With half the batch, and half of that, where the device's memory is too small."""
    return halve_until_it_fits(lambda images: measure(net, images, rounds, device), batch)


def main(arguments: Sequence[str] | None = None, nets: Sequence[Net] = NETS, more: Sequence[Net] = MORE) -> int:
    """The command line; returns the exit code: 1 if a case has no rows."""
    parser = make_parser("imagenet", "Steps of the big networks.", [net.name for net in (*nets, *more)])
    parser.add_argument("--more", action="store_true", help="the cases that the round has no time for")
    options = parser.parse_args(arguments)
    chosen = more if options.more else nets
    if options.cases:
        chosen = [net for net in (*nets, *more) if net.name in options.cases]
    return run_cases(chosen, options, measure_what_fits)


if __name__ == "__main__":
    sys.exit(main())
