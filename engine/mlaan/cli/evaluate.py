"""`mlaan eval`: the exported backbone of a checkpoint on the test images."""

import argparse
import math
from dataclasses import replace
from pathlib import Path

from mlaan import checkpoint
from mlaan.build import build
from mlaan.checkpoint import Checkpoint
from mlaan.cli.arguments import Overrides
from mlaan.cli.settings import load_kept
from mlaan.config import Config
from mlaan.errors import UserError
from mlaan.observe.words import percent
from mlaan.run_folder import RunFolder

_CHANGEABLE = ("data.", "train.device", "train.precision", "train.kernels", "train.channels_last")


def run(arguments: argparse.Namespace, overrides: Overrides) -> int:
    """Prints accuracies and loss."""
    given = Path(arguments.path)
    path = RunFolder.open(given).last if given.is_dir() else given
    saved = checkpoint.load(path)
    # by default the very images that the run was tested on: one that is gone is then named
    kept = path.parent / "images.npz"
    is_as_in_the_run = kept.exists() and not any(key.startswith("data.") for key, _ in overrides)
    parts = build(settings_of(saved, path, overrides, _CHANGEABLE), kept if is_as_in_the_run else None)
    engine, test_batches = parts.engine, parts.test_batches
    print(*parts.notes, sep="\n", end="\n" if parts.notes else "")
    # loss scales belong to the precision of the training, which a test need not share
    scales = {} if engine.loss_scale is None else engine.loss_scale.state_dict()
    try:
        engine.load_state_dict(saved.engine | {"loss_scale": scales})
    except UserError as error:
        raise UserError(f"{path} does not fit these settings: {error}") from None
    result = engine.evaluate(test_batches)
    print(f"top-1   {percent(result.top1)} ({round(result.top1 * result.samples)} right of {result.samples} images)")
    if missing := test_batches.images_per_epoch - result.samples:
        print(f"missing {missing} of {test_batches.images_per_epoch} test images could not be read")
    if not math.isnan(result.top5):
        print(f"top-5   {percent(result.top5)}")
    print(f"loss    {result.loss:.4f}")
    when = f"after epoch {saved.progress['epoch']}, step {saved.progress['step']}"
    print(f"weights {path}, {when}{', their average' if engine.average is not None else ''}; in {engine.precision}")
    return 0


def settings_of(
    saved: Checkpoint, path: Path, overrides: Overrides, changeable: tuple[str, ...] = ("data.", "train.device")
) -> Config:
    """The settings of a checkpoint in `path`, with other `changeable` ones; UserError for any other override."""
    for key, value in overrides:
        if not key.startswith(changeable):
            *names, last = (f"{name}*" if name.endswith(".") else name for name in changeable)
            raise UserError(f"--{key} {value} cannot change a trained network: only {', '.join(names)} and {last} can")
    return without_weights(load_kept(saved.config, path, overrides))


def without_weights(config: Config) -> Config:
    """The settings of a network whose weights a checkpoint brings: those to begin with are not read again."""
    return replace(config, model=replace(config.model, weights=""))
