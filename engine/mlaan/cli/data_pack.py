"""`mlaan data pack`: writes a folder of images as a few large files."""

import argparse
import os
from pathlib import Path

from mlaan.cli.arguments import Overrides
from mlaan.cli.data_check import Progress
from mlaan.data.pack import PackSettings, pack_part
from mlaan.errors import UserError
from mlaan.observe.words import mebibytes


def run(arguments: argparse.Namespace, overrides: Overrides) -> int:
    """Packs train/ and val/, and says how to train from what came out."""
    root, out = Path(arguments.folder).expanduser(), Path(arguments.out).expanduser()
    parts = [name for name in ("train", "val") if (root / name).is_dir()]
    if len(parts) < 2:
        raise UserError(f"{root} must hold train and val, each with a folder of images per class")
    settings = PackSettings(arguments.size, arguments.format, arguments.quality, arguments.shard_mb << 20)
    workers = arguments.workers or min(32, os.cpu_count() or 1)
    for name in parts:
        packed = pack_part(root / name, str(root), out / name, settings, workers, Progress(str(root / name)))
        for path, reason in packed.left_out.items():
            print(f"left out: {root / name / path} ({reason})")
        print(
            f"{out / name}: {packed.images:,} images, {mebibytes(packed.size)}, {len(packed.left_out)} files left out"
        )
    print(f"train from it with --data.name imagenet --data.root {out}")
    return 0
