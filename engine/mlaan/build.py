"""From settings to the parts of a run."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from mlaan import data, models
from mlaan.config import Config
from mlaan.data import Described, Loader
from mlaan.engine import Engine
from mlaan.errors import UserError
from mlaan.learning import Normalisation
from mlaan.models import Backbone


class Parts(NamedTuple):
    """What a run is made of."""

    engine: Engine
    train_batches: Loader
    test_batches: Loader
    dataset: Described


def build(config: Config) -> Parts:
    """Builds what the settings describe, the same bits at every call.

    Sets torch's seed to train.seed and, for a run on the CPU, torch's deterministic algorithms.

    Raises:
        UserError: a device that is not there, data that cannot be read, settings that do not fit each other.
    """
    device = choose_device(config.train.device)
    if device.type == "cpu":
        torch.use_deterministic_algorithms(True)
        # NaN in every new tensor is for debugging; no result depends on it.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.manual_seed(config.train.seed)
    dataset, train_batches, test_batches = data.loaders(config.data, device, config.train.seed)
    channels, *size = dataset.image_shape
    backbone = models.build(config.model.name, dataset.classes, channels, size, config.model.weights)
    backbone.net.to(device)
    engine = _engine(config, backbone, dataset.image_shape, (dataset.mean, dataset.std))
    return Parts(engine, train_batches, test_batches, dataset)


def outline(config: Config) -> Engine:
    """The engine of `build` on the meta device, for plans: no data are read, nothing is computed.

    Raises:
        UserError: settings that do not fit each other.
    """
    facts = data.facts(config.data)
    channels, *size = facts.image_shape
    with torch.device("meta"):
        backbone = models.build(config.model.name, facts.classes, channels, size)
        unknown = (0.5,) * channels  # no plan depends on it
        return _engine(config, backbone, facts.image_shape, (facts.mean or unknown, facts.std or unknown))


def _engine(config: Config, backbone: Backbone, image_shape: Sequence[int], normalisation: Normalisation) -> Engine:
    return Engine.from_config(
        backbone,
        config.method,
        config.partition,
        config.memory,
        config.optim,
        image_shape,
        train=config.train,
        normalisation=normalisation,
    )


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
