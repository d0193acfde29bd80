"""`mlaan export`: the backbone of a checkpoint alone, as weights and as a program."""

import argparse
import warnings
from pathlib import Path

import torch

from mlaan import checkpoint, data, export, models
from mlaan.cli.arguments import Overrides
from mlaan.cli.evaluate import settings_of
from mlaan.config import DataConfig
from mlaan.errors import UserError
from mlaan.observe.words import mebibytes
from mlaan.run_folder import RunFolder


def run(arguments: argparse.Namespace, overrides: Overrides) -> int:
    """Writes the files and prints how far their logits are from the trained network's."""
    given = Path(arguments.path)
    path = RunFolder.open(given).last if given.is_dir() else given
    saved = checkpoint.load(path)
    config = settings_of(saved, path, overrides)
    facts = data.facts(config.data)
    channels, *size = facts.image_shape
    backbone = models.build(config.model.name, facts.classes, channels, size)
    try:
        average = saved.engine.get("average") or {}
        backbone.net.load_state_dict(average.get("weights", saved.engine["backbone"]))
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise UserError(f"{path} does not fit {config.model.name} for these data: {reason}") from None
    epoch = saved.progress["epoch"]
    exported = export.save(
        backbone,
        Path(arguments.out) if arguments.out else path.parent / "export",
        facts.image_shape,
        form=arguments.format,
        normalisation=_normalisation(config.data, facts),
        about={"model": config.model.name, "method": config.method.name, "data": config.data.name, "epoch": str(epoch)},
    )
    shape = "x".join(map(str, facts.image_shape))
    of = ", the average of the weights" if average else ""
    print(f"{backbone.name}, {facts.classes} classes, images of {shape}, from {path} after epoch {epoch}{of}")
    for file, difference in exported.differences.items():
        print(f"{file}  {mebibytes(file.stat().st_size)}, read again: logits differ by at most {difference:.1e}")
    print(f"(the largest logit is {exported.largest:.1e})")
    return 0


def _normalisation(config: DataConfig, facts: data.Facts) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """What the settings say, or else what the images themselves are measured to have."""
    if facts.mean is not None and facts.std is not None:
        return facts.mean, facts.std
    try:
        dataset = data.loaders(config, torch.device("cpu"), seed=0).dataset
    except UserError as error:
        warnings.warn(f"the files will not say mean and deviation of the images: {error}", stacklevel=2)
        return None
    return dataset.mean, dataset.std
