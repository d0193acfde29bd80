"""What the members of DataConfig say without files, and what they have in common."""

from pathlib import Path

import pytest
import torch

from data.official_files import MEMBERS, write_cifar10, write_cifar100, write_images, write_stl10, write_svhn
from mlaan.config import DataConfig, describe
from mlaan.data import CIFAR10, SVHN, ImageNet, SubsetSource, Synthetic, facts, loaders
from mlaan.errors import UserError

WRITERS = {
    "cifar10": write_cifar10,
    "cifar100": write_cifar100,
    "stl10": write_stl10,
    "svhn": write_svhn,
    "imagenet": write_images,
}
FIELDS = {"imagenet": {"classes": 3, "size": 32, "workers": 0}, "synthetic": {"classes": 4, "channels": 2, "size": 9}}


@pytest.mark.parametrize("name", MEMBERS)
def test_facts_are_true(tmp_path, name):
    fields = {"batch": 4} | FIELDS.get(name, {})
    if name in WRITERS:
        WRITERS[name](tmp_path)
        fields |= {"root": str(tmp_path)}
    if name == "digits":
        pytest.importorskip("sklearn")
    if name == "fashion_mnist" and not Path(DataConfig.make(name).root).is_dir():
        pytest.skip("needs the package dataset-fashion-mnist")
    config = DataConfig.make(name, **fields)
    said = facts(config)
    dataset, train, test = loaders(config, "cpu", 0)
    assert (said.classes, said.image_shape) == (dataset.classes, dataset.image_shape)
    assert said.mean in (None, dataset.mean)
    assert said.std in (None, dataset.std)
    if name not in WRITERS:
        assert said.train_count == len(train.labels)
    for loader in train, test:
        batch = next(iter(loader))
        assert batch.images.shape[1:] == said.image_shape
        assert int(batch.labels.max()) < said.classes


@pytest.mark.parametrize("name", MEMBERS)
def test_facts_need_no_files(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = facts(DataConfig.make(name))
    assert said.classes == {"cifar100": 100, "imagenet": 1000}.get(name, 10)
    assert len(said.image_shape) == 3
    assert list(tmp_path.iterdir()) == []


def test_published_counts():
    counts = {name: facts(DataConfig.make(name)).train_count for name in WRITERS}
    assert counts == {"cifar10": 50000, "cifar100": 50000, "stl10": 5000, "svhn": 73257, "imagenet": None}
    assert facts(CIFAR10(train_images=300)).train_count == 300


def test_a_subset_is_fixed_and_contained_in_larger_ones(tmp_path):
    write_svhn(tmp_path, train=100)
    small, large, whole = (SVHN(root=str(tmp_path), train_images=count).load() for count in (12, 60, 0))
    assert torch.equal(small.train_images, large.train_images[:12])
    assert not torch.equal(small.train_images, whole.train_images[:12])
    assert torch.equal(small.test_images, whole.test_images)
    for image, label in zip(large.train_images, large.train_labels, strict=True):
        [place] = (whole.train_images == image).flatten(1).all(1).nonzero().flatten().tolist()
        assert whole.train_labels[place] == label
    assert len(large.train_images.flatten(1).unique(dim=0)) == 60


def test_every_set_from_files_has_subsets():
    members = {name for name in MEMBERS if issubclass(DataConfig.choices[name], SubsetSource)}
    assert members == set(MEMBERS) - {Synthetic.name, ImageNet.name}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"train_images": -1}, "data.train_images = -1 must not be negative; 0 means all"),
        (
            {"train_images": 101},
            "data.train_images = 101 is more than there are, 100: set data.train_images = 0 for all",
        ),
        ({"batch": 0}, "data.batch = 0 must be at least 1"),
    ],
)
def test_settings_that_do_not_do(tmp_path, fields, message):
    write_cifar10(tmp_path)
    with pytest.raises(UserError) as caught:
        CIFAR10(root=str(tmp_path), **fields).load()
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("name", MEMBERS)
def test_every_field_has_help(name):
    rows = describe(DataConfig.choices[name])
    assert rows
    assert [row.key for row in rows if not row.help] == []
