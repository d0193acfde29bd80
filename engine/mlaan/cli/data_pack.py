"""`mlaan data pack`: writes a folder of images as a few large files."""

import argparse
import os
from pathlib import Path

from mlaan.cli.arguments import Overrides
from mlaan.cli.data_check import NAMED, Progress
from mlaan.data.backends import require_same_classes
from mlaan.data.check import open_part
from mlaan.data.pack import PackSettings, pack_part
from mlaan.errors import UserError
from mlaan.observe.words import mebibytes


def run(arguments: argparse.Namespace, overrides: Overrides) -> int:
    """Packs train/ and val/, and says how to train from what came out."""
    root, out = Path(arguments.folder).expanduser(), Path(arguments.out).expanduser()
    parts = [name for name in ("train", "val") if (root / name).is_dir()]
    if len(parts) < 2:
        raise UserError(f"{root} must hold train and val, each with a folder of images per class")
    if any(out.resolve().is_relative_to((root / name).resolve()) for name in parts):
        raise UserError(f"{out} lies among the images of {root}: give a folder outside")
    opened = [open_part(root / name, str(root)) for name in parts]
    require_same_classes([part.classes for part in opened], str(root))
    settings = PackSettings(arguments.size, arguments.format, arguments.quality, arguments.shard_mb << 20)
    workers = arguments.workers or min(32, os.cpu_count() or 1)
    for name, part in zip(parts, opened, strict=True):
        packed = pack_part(part, root / name, out / name, settings, workers, Progress(str(root / name)))
        if part.note and not part.left_out:  # those are named below
            print(part.note)
        for path, reason in list(packed.left_out.items())[:NAMED]:
            print(f"left out: {root / name / path} ({reason})")
        if len(packed.left_out) > NAMED:
            print(f"left out: {len(packed.left_out) - NAMED} more; `mlaan data check --json` names all")
        print(
            f"{out / name}: {packed.images:,} images, {mebibytes(packed.size)}, {len(packed.left_out)} files left out"
        )
    print(f"train from it with --data.name imagenet --data.root {out}")
    return 0
