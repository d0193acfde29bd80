"""From settings to the parts of a run."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch

from mlaan import data, models
from mlaan.config import Config
from mlaan.data import Described, Facts, ImageSource, Loader, Mixing
from mlaan.engine import Engine
from mlaan.errors import UserError
from mlaan.execute import AUTOCAST, choose_kernels, shorten
from mlaan.learning import Method, Normalisation
from mlaan.models import Backbone
from mlaan.optim.average import average_bytes
from mlaan.optim.states import state_bytes
from mlaan.plan.candidates import Bench, Choice, Subject
from mlaan.plan.machine import Machine


class Parts(NamedTuple):
    """What a run is made of."""

    engine: Engine
    train_batches: Loader
    test_batches: Loader
    dataset: Described
    notes: tuple[str, ...] = ()
    """Lines on the data for the person who trains."""
    keep: Callable[[Path], None] | None = None
    """Writes to a file which images these are; see `mlaan.data.Loaders`."""


def build(config: Config, kept: Path | None = None) -> Parts:
    """Builds what the settings describe, the same bits at every call; `kept` is a file by `Parts.keep`.

    Sets torch's seed to train.seed and, for a run on the CPU, torch's deterministic algorithms.

    Raises:
        UserError: a device that is not there, data that cannot be read, settings that do not fit each other.
    """
    device = _prepare(config)
    torch.manual_seed(config.train.seed)
    loaders = data.loaders(config.data, device, config.train.seed, kept)
    dataset, train_batches, test_batches = loaders
    channels, *size = dataset.image_shape
    backbone = models.build(config.model.name, dataset.classes, channels, size, config.model.weights)
    backbone.net.to(device)
    engine = _engine(config, backbone, dataset.image_shape, (dataset.mean, dataset.std))
    if soft := _soft_labels(config):
        train_batches.change = Mixing(dataset.classes, config.train.seed, **soft)
    return Parts(engine, train_batches, test_batches, dataset, loaders.notes, loaders.keep)


def _soft_labels(config: Config) -> dict[str, float]:
    """The settings that make soft labels, as far as they are on."""
    names = ("label_smoothing", "mixup", "cutmix")
    return {name: value for name in names if (value := getattr(config.train, name))}


def engine_alone(config: Config, normalisation: Normalisation) -> Engine:
    """The engine of `build` without its data, for weights that are loaded afterwards.

    Args:
        normalisation: mean and standard deviation of the data's channels.

    Raises:
        UserError: a device that is not there, settings that do not fit each other.
    """
    device, facts = _prepare(config), data.facts(config.data)
    channels, *size = facts.image_shape
    backbone = models.build(config.model.name, facts.classes, channels, size)
    backbone.net.to(device)
    return _engine(config, backbone, facts.image_shape, normalisation)


def outline(config: Config) -> Engine:
    """The engine of `build` on the meta device, for plans: no data are read, nothing is computed.

    Raises:
        UserError: settings that do not fit each other.
    """
    with torch.device("meta"):
        backbone, facts = _on_meta(config)
        return _engine(config, backbone, facts.image_shape, _normalisation(facts))


def with_kernels(config: Config, device: str, *, is_here: bool = True) -> Config:
    """The settings for a step that is only planned, for a "cpu" or a "cuda" device.

    What "auto" kernels are is then said in so many words, unless a GPU of this machine decides it.
    """
    if config.train.kernels != "auto" or (device == "cuda" and is_here and torch.cuda.is_available()):
        return config
    kernels = "triton" if device == "cuda" else "reference"
    return replace(config, train=replace(config.train, kernels=kernels))


def choice_of(config: Config) -> Choice:
    """The settings that decide a step's memory and time; the batch is what runs at once."""
    partition, memory = config.partition, config.memory
    assert isinstance(config.data, ImageSource)
    batch = config.data.batch // config.train.accumulate
    return Choice(partition.modules, partition.cuts, memory.schedule, memory.window, memory.recompute, batch)


def with_choice(config: Config, choice: Choice) -> Config:
    """The settings with other ones of those."""
    partition = replace(config.partition, modules=choice.modules, cuts=choice.cuts)
    memory = replace(config.memory, schedule=choice.schedule, window=choice.window, recompute=choice.recompute)
    batches = replace(config.data, batch=choice.batch * config.train.accumulate)  # type: ignore[type-var]
    return replace(config, partition=partition, memory=memory, data=batches)


def bench_for(config: Config, machine: Machine) -> Bench:
    """What estimates other choices for the network, the method and the optimizer of some settings, on a machine.

    Raises:
        UserError: settings that do not fit each other.
    """
    train = config.train
    with torch.device("meta"):
        backbone, facts = _on_meta(config)
    weight = next(backbone.net.parameters())
    short = train.weights == "bfloat16"
    if short:
        shorten([backbone.net], torch.bfloat16)
    kernels = choose_kernels(train.kernels, weight, train.precision)
    channels_last = train.channels_last or kernels == "triton"
    if channels_last:
        cast(Any, backbone.net).to(memory_format=torch.channels_last)
    subject = Subject(
        backbone,
        cast(Method, config.method),
        facts.image_shape,
        machine,
        AUTOCAST.get(train.precision, weight.dtype),
        kernels,
        state_bytes(config.optim, torch.bfloat16 if short else torch.float32),
        "tf32" if train.precision == "tf32" else None,
        train.executor != "eager" and machine.kind == "cuda",
        config.optim.clip == "global",
        _normalisation(facts),
        channels_last,
        train.accumulate,
        average_bytes(backbone.net) if train.average else 0,
    )
    return Bench(subject)


def _prepare(config: Config) -> torch.device:
    """The run's device; on the CPU, results are the same at every run from now on."""
    device = choose_device(config.train.device)
    if device.type == "cpu":
        torch.use_deterministic_algorithms(True)
        # NaN in every new tensor is for debugging; no result depends on it.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    return device


def _on_meta(config: Config) -> tuple[Backbone, Facts]:
    facts = data.facts(config.data)
    channels, *size = facts.image_shape
    return models.build(config.model.name, facts.classes, channels, size), facts


def _normalisation(facts: Facts) -> Normalisation:
    """What is not known before the data are read is made up: no plan depends on it."""
    unknown = (0.5,) * facts.image_shape[0]
    return facts.mean or unknown, facts.std or unknown


def _engine(config: Config, backbone: Backbone, image_shape: Sequence[int], normalisation: Normalisation) -> Engine:
    assert isinstance(config.data, ImageSource)
    batch, parts = config.data.batch, config.train.accumulate
    if batch % parts:
        raise UserError(
            f"data.batch = {batch} cannot be cut into train.accumulate = {parts} equal parts: set data.batch = "
            f"{max(1, batch // parts) * parts}"
        )
    engine = Engine.from_config(
        backbone,
        config.method,
        config.partition,
        config.memory,
        config.optim,
        image_shape,
        train=config.train,
        normalisation=normalisation,
        sizes=config.data.smaller_sizes(),
    )
    picky = next((loss for loss in engine.supervision.losses if loss.needs_classes), None)
    if picky and (soft := _soft_labels(config)):
        name, value = next(iter(soft.items()))
        raise UserError(
            f"train.{name} = {value} makes soft labels, but the loss {picky.name} of method.name = "
            f"{config.method.name!r} compares images by their class: set train.{name} = 0, or method.loss = 'softmax'"
        )
    return engine


def choose_device(name: str) -> torch.device:
    """The device that train.device = `name` means; "auto" is the first GPU, or else the CPU.

    Raises:
        UserError: no such device here.
    """
    count = torch.cuda.device_count()
    if name == "auto":
        return torch.device("cuda", 0) if count else torch.device("cpu")
    kind, colon, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (colon and not (kind == "cuda" and index.isdecimal())):
        raise UserError(f"train.device = {name!r} must be auto, cpu, cuda or cuda:N")
    if kind == "cpu":
        return torch.device("cpu")
    if not count:
        why = "this torch is built without CUDA" if torch.version.cuda is None else "torch sees no GPU"
        raise UserError(f"train.device = {name!r}, but {why}: set train.device = cpu, or ask `mlaan doctor`")
    if int(index or 0) >= count:
        raise UserError(f"train.device = {name!r}, but there are {count} GPUs: choose cuda:0 to cuda:{count - 1}")
    return torch.device("cuda", int(index or 0))
