"""One real step of every method on every data set, through the settings, from files in the official formats."""

import math

import pytest

from data.idx_files import write_set
from data.official_files import MEMBERS, write_cifar10, write_cifar100, write_images, write_stl10, write_svhn
from mlaan.build import build
from mlaan.cli.settings import load_config
from mlaan.config import MethodConfig

OWN = {name for name, member in MethodConfig.choices.items() if member.__module__.startswith("mlaan.")}
METHODS = {name: {"name": name} for name in sorted(OWN)}
METHODS |= {
    "infopro-contrastive": {"name": "infopro", "loss": "contrastive"},
    "man++": {"name": "man", "scale": "true"},
    **{f"mlaan-{preset}": {"name": "mlaan", "preset": preset} for preset in ("light", "authors", "fast")},
    **{f"mlaan-{base}": {"name": "mlaan", "base": base} for base in ("dgl", "predsim", "infopro", "auglocal")},
}
WRITERS = {
    "cifar10": write_cifar10,
    "cifar100": write_cifar100,
    "stl10": write_stl10,
    "svhn": write_svhn,
    "imagenet": write_images,
    "fashion_mnist": lambda root: write_set(root),
}
SMALL = {
    "imagenet": {
        "size": "32",
        "classes": "3",
        "workers": "0",
    },  # the net and the step are what is tested here, not the size
    "synthetic": {"images": "16", "test_images": "8", "size": "16"},
}


@pytest.fixture(scope="session")
def roots(tmp_path_factory):
    """The root of every data set that has files."""
    made = {}
    for name, write in WRITERS.items():
        made[name] = tmp_path_factory.mktemp(name)
        write(made[name])
    return made


def test_every_data_set_is_here():
    assert {*WRITERS, "digits", "synthetic"} == set(MEMBERS)


@pytest.mark.parametrize("data", MEMBERS)
@pytest.mark.parametrize("method", METHODS)
def test_a_step(method, data, roots):
    settings = {f"method.{key}": value for key, value in METHODS[method].items()}
    settings |= {"data.name": data, "data.batch": "4", "partition.modules": "3", "train.device": "cpu"}
    settings |= {f"data.{key}": value for key, value in SMALL.get(data, {}).items()}
    if data in roots:
        settings["data.root"] = str(roots[data])
    parts = build(load_config(None, list(settings.items())))
    before = {name: weight.clone() for name, weight in parts.engine.backbone.net.named_parameters()}
    images, labels = next(iter(parts.train_batches))
    result = parts.engine.step(images, labels)
    assert all(math.isfinite(value) for value in result.losses.tolist())
    moved = [name for name, weight in parts.engine.backbone.net.named_parameters() if (weight != before[name]).any()]
    assert len(moved) == len(before)
