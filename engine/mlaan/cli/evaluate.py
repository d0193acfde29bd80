"""`mlaan eval`: the exported backbone of a checkpoint on the test images."""

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

from mlaan import checkpoint
from mlaan.build import build
from mlaan.cli.arguments import Overrides
from mlaan.cli.settings import load_config
from mlaan.config import Config
from mlaan.errors import UserError
from mlaan.observe.words import percent
from mlaan.run_folder import RunFolder


def run(arguments: argparse.Namespace, overrides: Overrides) -> int:
    """Prints top-1 accuracy and loss."""
    given = Path(arguments.path)
    path = RunFolder.open(given).last if given.is_dir() else given
    saved = checkpoint.load(path)
    parts = build(settings_of(saved.config, overrides))
    try:
        parts.engine.load_state_dict(saved.engine)
    except UserError as error:
        raise UserError(f"{path} does not fit these settings: {error}") from None
    result = parts.engine.evaluate(parts.test_batches)
    print(f"top-1   {percent(result.top1)} ({round(result.top1 * result.samples)} of {result.samples} images)")
    print(f"loss    {result.loss:.4f}")
    print(f"weights {path}, after epoch {saved.progress['epoch']}, step {saved.progress['step']}")
    return 0


def settings_of(text: str, overrides: Overrides) -> Config:
    """A checkpoint's settings, with other data.* and train.device; UserError for any other override."""
    for key, value in overrides:
        if not key.startswith("data.") and key != "train.device":
            raise UserError(f"--{key} {value} cannot change a trained network: only data.* and train.device can")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "config.toml"
        file.write_text(text, encoding="utf-8")
        config = load_config(file, overrides)
    return without_weights(config)


def without_weights(config: Config) -> Config:
    """The settings of a network whose weights a checkpoint brings: those to begin with are not read again."""
    return replace(config, model=replace(config.model, weights=""))
