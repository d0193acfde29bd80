"""`mlaan probe`: linear probes on the modules of runs, and how alike the modules are."""

import argparse
import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mlaan import checkpoint
from mlaan.build import Parts, build
from mlaan.cli.arguments import Overrides
from mlaan.cli.evaluate import without_weights
from mlaan.cli.settings import load_config
from mlaan.config import Config
from mlaan.data import Loader, MemoryLoader, ViewLoader
from mlaan.data.store import ChosenImages
from mlaan.engine import Engine
from mlaan.errors import UserError
from mlaan.probe import Features, Likeness, ModuleProbe, Probe, as_text, cka_matrix, fit, pooled_features
from mlaan.probe.linear import L2
from mlaan.run_folder import RunFolder


class _Run(NamedTuple):
    """A run's network with its last weights."""

    folder: RunFolder
    parts: Parts
    epoch: int

    @property
    def name(self) -> str:
        return self.folder.path.resolve().name


def run(arguments: argparse.Namespace, overrides: Overrides) -> int:
    """Probes every run, prints its table, and writes its probe.json and probe.png."""
    if arguments.images < 1:
        raise UserError(f"--images {arguments.images} must be at least 1")
    folders = [RunFolder.open(Path(path)) for path in arguments.paths]
    against = RunFolder.open(Path(arguments.against)) if arguments.against else None
    first = _load(folders[0], overrides)
    ends = [end for _, end in first.parts.engine.partition.spans]
    first_test = _features(first.parts.engine, first.parts.test_batches, ends)
    other = _load(against, overrides) if against else None
    other_test = _test_features(other, first, first_test, ends) if other else None
    for folder in folders:
        probed = first if folder is folders[0] else _load(folder, overrides)
        test = first_test if probed is first else _test_features(probed, first, first_test, ends)
        train = _features(probed.parts.engine, _training_batches(probed.parts, arguments.images), ends)
        likeness = Likeness(other.name, cka_matrix(test.depths, other_test.depths)) if other and other_test else None
        _report(folder, _probe(probed, first, train, test, likeness))
    return 0


def _load(folder: RunFolder, overrides: Overrides) -> _Run:
    for key, value in overrides:
        if not key.startswith("data.") and key != "train.device":
            raise UserError(f"--{key} {value} cannot change a trained network: only data.* and train.device can")
    saved = checkpoint.load(folder.last)
    parts = build(_without_mixing(without_weights(load_config(folder.config, overrides))))
    try:
        parts.engine.load_state_dict(saved.engine)
    except UserError as error:
        raise UserError(f"{folder.last} does not fit {folder.config}: {error}") from None
    parts.engine.take_average()
    return _Run(folder, parts, saved.progress["epoch"])


def _without_mixing(config: Config) -> Config:
    """The settings with training images and labels as they are: probes look at one image at a time."""
    return replace(config, train=replace(config.train, label_smoothing=0.0, mixup=0.0, cutmix=0.0))


def _test_features(run: _Run, first: _Run, first_test: Features, ends: list[int]) -> Features:
    """Features of the test images, of a run that can stand beside the first."""
    mine, theirs = run.parts.engine.backbone, first.parts.engine.backbone
    if (mine.name, [block.label for block in mine.blocks]) != (theirs.name, [block.label for block in theirs.blocks]):
        raise UserError(
            f"{run.folder.path} trained a {mine.name}, {first.folder.path} a {theirs.name}: "
            "compare runs of one backbone, partitions may differ"
        )
    test = _features(run.parts.engine, run.parts.test_batches, ends)
    if test.labels.tolist() != first_test.labels.tolist():
        raise UserError(
            f"{run.folder.path} has other test images than {first.folder.path}: compare runs on one data set"
        )
    return test


def _features(engine: Engine, batches: Loader, ends: list[int]) -> Features:
    """In the run's own arithmetic, as its test was."""
    checked = (engine.batch_check(images, labels, training=False) for images, labels in batches)
    return pooled_features(engine.backbone, checked, ends, engine.autocast)


def _training_batches(parts: Parts, count: int) -> Loader:
    """Training images seen as test images are, not augmented: all, or the first `count` of a fixed shuffle."""
    train, test = parts.train_batches, parts.test_batches
    common: dict[str, Any] = {"batch": test.batch, "device": test.device, "seed": 0}
    common |= {"mean": parts.dataset.mean, "std": parts.dataset.std}
    if isinstance(train, ViewLoader):
        images = ChosenImages(train.images, _chosen(len(train.images), count))
        return ViewLoader(images, train.plan, training=False, workers=train.workers, **common)
    assert isinstance(train, MemoryLoader)
    chosen = _chosen(len(train.images), count).to(train.images.device)
    common |= {"shuffle": False, "drop_last": False}
    return MemoryLoader(train.images[chosen], train.labels[chosen], augment=None, **common)


def _chosen(images: int, count: int) -> Tensor:
    # NumPy's compatibility policy freezes RandomState's stream: the choice never changes.
    return torch.from_numpy(np.random.RandomState(0).permutation(images)[:count])


def _probe(run: _Run, first: _Run, train: Features, test: Features, likeness: Likeness | None) -> Probe:
    engine = run.parts.engine
    classes = run.parts.dataset.classes
    modules = []
    for module, (start, end) in enumerate(first.parts.engine.partition.spans):
        blocks = f"{engine.backbone.blocks[start].label}-{engine.backbone.blocks[end - 1].label}"
        features = train.depths[module]
        top1 = fit(features, train.labels, classes).top1(test.depths[module], test.labels)
        modules.append(ModuleProbe(module, blocks, features.shape[1], top1))
    return Probe(
        run=run.name,
        epoch=run.epoch,
        depths_of=first.name,
        images=len(train.labels),
        test_images=len(test.labels),
        l2=L2,
        test_top1=engine.evaluate(run.parts.test_batches).top1,
        modules=tuple(modules),
        cka=cka_matrix(test.depths, test.depths),
        against=likeness,
    )


def _report(folder: RunFolder, probe: Probe) -> None:
    print(as_text(probe))
    data, picture = folder.path / "probe.json", folder.path / "probe.png"
    data.write_text(json.dumps(probe.as_dict(), indent=1, allow_nan=False) + "\n", encoding="utf-8")
    print(f"{'figures':<10}  {data}")
    if importlib.util.find_spec("matplotlib") is None:
        print("probe.png needs the package 'matplotlib': pip install matplotlib\n")
        return
    from mlaan.probe.plot import plot

    plot(probe, picture)
    print(f"{'picture':<10}  {picture}\n")
