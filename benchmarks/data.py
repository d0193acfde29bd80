"""How fast training images arrive, by every way of loading them, side by side in one run.

    python -m benchmarks.data [--device cuda] [--workers 2] [--images 2000] [--rounds 5] [--root DIR] [--json FILE]

Every contender gives batches of 64 normalised float32 images of 224x224, each a random part of a photograph, on the
device. Without --root the photographs are made: parts of scikit-learn's two real ones, 500x375, JPEG of quality 90.
"PIL" is torchvision's reference recipe: Pillow decodes and crops, float32 is made by the workers; "PIL uint8" leaves
the last part to the training process, as ours do. A round takes all contenders in turn; a turn is an epoch with workers
of its own, timed from the arrival of an early batch to that of the last. On a GPU each also feeds a ResNet-50 of 4
modules, for the share of the time that its steps waited.
"""

import argparse
import importlib.util
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from benchmarks.machine import facts
from benchmarks.measure import paired_ratios, percentiles
from mlaan import data
from mlaan.data import ImageNet
from mlaan_kernels.normalize_augment import normalize_augment

SIZE, BATCH, HEIGHT, WIDTH, QUALITY = 224, 64, 375, 500, 90
EARLY = 4
"""The batch from whose arrival on an epoch is timed: by then every worker has delivered."""
REFERENCE = "torchvision, PIL"
Contender = Callable[[int], Iterable[Any]]
"""Batches of the epoch of that number."""


def make_photographs(root: Path, count: int) -> None:
    """An ImageNet-shaped folder of parts of two real photographs, in two classes."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    random = np.random.RandomState(0)
    photographs = [Image.fromarray(image) for image in load_sample_images().images]
    for part, images in (("train", count), ("val", 16)):
        for i in range(images):
            folder = root / part / f"class{i % 2}"
            folder.mkdir(parents=True, exist_ok=True)
            width = random.randint(300, 600)
            height = width * HEIGHT // WIDTH
            left, top = random.randint(0, 640 - width), random.randint(0, max(1, 427 - height))
            cut = photographs[i % 2].crop((left, top, left + width, min(427, top + height)))
            cut.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC).save(folder / f"{i}.JPEG", quality=QUALITY)


def pil(root: Path, workers: int, device: torch.device, *, whole: bool) -> Contender:
    """Torchvision's reference recipe over Pillow; `whole`: float32 in the workers too."""
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    views: list[Any] = [v2.RandomResizedCrop(SIZE, antialias=True), v2.RandomHorizontalFlip(), v2.PILToTensor()]
    if whole:
        views += [v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)]
    images = ImageFolder(str(root / "train"), v2.Compose(views))
    means, stds = (torch.tensor(values, device=device) for values in (mean, std))
    pinned = device.type == "cuda"

    def batches(epoch: int) -> Iterator[Any]:
        torch.manual_seed(epoch)
        for views, labels in DataLoader(images, BATCH, True, num_workers=workers, drop_last=True, pin_memory=pinned):
            on_device = views.to(device, non_blocking=True)
            if not whole:
                seeds = torch.zeros(len(views), dtype=torch.int64, device=device)
                pixels = on_device.permute(0, 2, 3, 1)
                on_device = normalize_augment(pixels, means, stds, seeds, dtype=torch.float32)
            yield on_device, labels.to(device, non_blocking=True)

    return batches


def ours(settings: ImageNet, device: torch.device) -> Contender:
    train = data.loaders(settings, device, 0).train

    def batches(epoch: int) -> Iterator[Any]:
        train.epoch, train.position = epoch, 0
        return iter(train)

    return batches


def contenders(root: Path, packed: dict[str, Path], workers: int, device: torch.device) -> dict[str, Contender]:
    """Every way of loading that this machine has, by name."""
    folder = ImageNet(root=str(root), batch=BATCH, classes=_classes(root), size=SIZE, workers=workers)
    found = {
        REFERENCE: pil(root, workers, device, whole=True),
        "torchvision, PIL uint8": pil(root, workers, device, whole=False),
        "ours, torchvision": ours(replace(folder, backend="torchvision"), device),
    }
    for name, place in packed.items():
        found[f"ours, packed {name}"] = ours(replace(folder, root=str(place), backend="packed"), device)
    if importlib.util.find_spec("nvidia.dali") is not None:
        found["ours, DALI"] = ours(replace(folder, backend="dali"), device)
    return found


def turn(contender: Contender, epoch: int, device: torch.device) -> float:
    """Images per second of an epoch."""
    images, start = 0, 0.0
    for number, (views, _) in enumerate(contender(epoch)):
        if number == EARLY:
            _wait(device)
            start, images = time.perf_counter(), 0
        elif number > EARLY:
            images += len(views)
    _wait(device)
    return images / (time.perf_counter() - start)


def waiting(contender: Contender, device: torch.device) -> float:
    """The share of an epoch's time that the steps of a ResNet-50 in 4 modules waited for images, 0 to 1."""
    from mlaan import MLAAN, Engine
    from mlaan.models import BACKBONES

    backbone = BACKBONES["resnet50"](1000, 3)
    backbone.net.to(device)
    shape, method = (3, SIZE, SIZE), MLAAN(preset="light", reach=2)
    engine = Engine(backbone, method, 4, input_shape=shape, cuts="flops", precision="bfloat16")
    waited = start = 0.0
    before = time.perf_counter()
    for number, (images, labels) in enumerate(contender(0)):
        arrived = time.perf_counter()
        if number == EARLY:
            start, waited = arrived, 0.0
        waited += arrived - before if number > EARLY else 0.0
        engine.step(images, labels)
        _wait(device)
        before = time.perf_counter()
    return waited / (time.perf_counter() - start)


def measure(found: dict[str, Contender], rounds: int, device: torch.device, about: dict[str, Any]) -> list[Any]:
    """A row per contender: images per second, and the ratio to the reference within each round."""
    names = list(found)
    rates: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            rates[name].append(turn(found[name], number, device))
    rows = []
    for name in names:
        spread = percentiles([BATCH / rate for rate in rates[name]])
        rows.append(
            about
            | {
                "benchmark": "data",
                "case": "loader",
                "contender": name,
                "rounds": rounds,
                "ms": {p: 1e3 * value for p, value in zip(("p20", "p50", "p80"), spread, strict=True)},
                "images_per_second": BATCH / spread.median,
                "rate_ratio": {REFERENCE: paired_ratios(rates[name], rates[REFERENCE])._asdict()},
            }
        )
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.data", description="How fast training images arrive.")
    parser.add_argument("--device", default="cpu", type=torch.device)
    parser.add_argument("--workers", type=int, default=2, help="processes that decode; DALI: threads")
    parser.add_argument("--images", type=int, default=2000, help="photographs to make")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--root", type=Path, help="a folder with train/ and val/ in place of made photographs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there")
    parser.add_argument("--commit", help="recorded where the sources are a copy without their repository")
    options = parser.parse_args(arguments)
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # as the command line does; for all contenders
    torch.set_num_threads(1 if options.device.type == "cpu" else torch.get_num_threads())
    with tempfile.TemporaryDirectory(prefix="mlaan-bench-data-") as scratch:
        root = options.root or Path(scratch) / "photographs"
        if not options.root:
            make_photographs(root, options.images)
        packed = {kind: Path(scratch) / kind for kind in ("jpeg", "uint8")}
        for kind, place in packed.items():
            _pack(root, place, kind, options.workers)
        found = contenders(root, packed, options.workers, options.device)
        about = facts(options.device, options.commit) | {"workers": options.workers, "batch": BATCH, "size": SIZE}
        rows = measure(found, options.rounds, options.device, about)
        if options.device.type == "cuda":
            for row in rows:
                row["waited"] = waiting(found[row["contender"]], options.device)
    print(table(rows))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return 0


def table(rows: Sequence[dict[str, Any]]) -> str:
    """All rows, with the ratios' median, least and greatest."""
    lines = [f"{'':<26}{'img/s':>8}   over {REFERENCE}'s, least to greatest"]
    for row in rows:
        ratio = row["rate_ratio"][REFERENCE]
        line = f"{row['contender']:<26}{row['images_per_second']:8.0f}   "
        line += f"{ratio['median']:.2f} ({ratio['low']:.2f}-{ratio['high']:.2f})"
        lines.append(line + (f"   steps waited {row['waited']:.0%}" if "waited" in row else ""))
    return "\n".join(lines)


def _pack(root: Path, out: Path, kind: str, workers: int) -> None:
    from mlaan.cli import main as command

    status = command(["data", "pack", str(root), str(out), "--format", kind, "--workers", str(workers)])
    if status:
        raise SystemExit(status)


def _classes(root: Path) -> int:
    return sum(path.is_dir() for path in (root / "train").iterdir())


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    sys.exit(main())
