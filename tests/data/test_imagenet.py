"""ImageNet's layout, read through the section `data`."""

import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from data.official_files import data_section, write_images
from mlaan.data import ImageNet, loaders
from mlaan.data.views import ViewPlan
from mlaan.errors import UserError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SMALL = {"classes": 3, "size": 16, "workers": 0, "batch": 4}


def refused(root, **fields):
    with pytest.raises(UserError) as caught:
        loaders(ImageNet(root=str(root), **(SMALL | fields)), "cpu", 0)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_both_parts(tmp_path):
    write_images(tmp_path / "set")
    dataset, train, test = loaders(data_section(tmp_path, "imagenet", tmp_path / "set", **SMALL), "cpu", 0)
    assert (dataset.classes, dataset.image_shape) == (3, (3, 16, 16))
    assert (dataset.mean, dataset.std) == (MEAN, STD)
    assert (len(train), train.images_per_epoch) == (3, 12)
    assert (len(test), test.images_per_epoch) == (2, 6)
    assert torch.cat([batch.labels for batch in test]).tolist() == [0, 0, 1, 1, 2, 2]
    labels = torch.cat([batch.labels for batch in train])
    assert labels.bincount().tolist() == [4, 4, 4]
    assert labels.tolist() != sorted(labels.tolist())
    batches = list(train)
    assert [tuple(batch.images.shape) for batch in batches] == [(4, 3, 16, 16)] * 3
    assert all(batch.images.isfinite().all() for batch in batches)


def test_test_images_are_the_normalised_middle(tmp_path):
    write_images(tmp_path / "set")
    _, _, test = loaders(data_section(tmp_path, "imagenet", tmp_path / "set", **SMALL), "cpu", 0)
    images = torch.cat([batch.images for batch in test])
    paths = sorted((tmp_path / "set/val").rglob("*.JPEG"))
    assert len(paths) == 6
    for path, seen in zip(paths, images, strict=True):
        picture = Image.open(path).convert("RGB")
        shorter = min(picture.size)
        width, height = (int(18 * side / shorter) for side in picture.size)
        left, top = round((width - 16) / 2), round((height - 16) / 2)
        middle = picture.resize((width, height), Image.Resampling.BILINEAR).crop((left, top, left + 16, top + 16))
        pixels = torch.from_numpy(np.array(middle)).permute(2, 0, 1) / 255
        mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
        # Two decoders and two resizers round differently, by a grey level or two.
        assert float((seen - (pixels - mean) / std).abs().max()) < 4 / 255 / 0.224


def test_defaults_are_those_of_the_recipe():
    source = ImageNet()
    assert (source.size, source.classes, source.batch, source.root) == (224, 1000, 128, "data/imagenet")


@pytest.mark.parametrize(("fields", "expected"), [({"size": 224}, 256), ({"size": 64}, 73), ({"resize": 20}, 20)])
def test_resize_follows_size(tmp_path, fields, expected):
    write_images(tmp_path)
    _, train, test = loaders(ImageNet(root=str(tmp_path), **(SMALL | fields)), "cpu", 0)
    size = fields.get("size", 16)
    assert train.plan == test.plan == ViewPlan(size, expected)
    assert (train.training, test.training) == (True, False)


def test_resuming_in_the_middle_of_an_epoch(tmp_path):
    write_images(tmp_path)
    whole = list(loaders(ImageNet(root=str(tmp_path), **SMALL), "cpu", 5).train)
    for workers in 0, 2:
        _, stopped, _ = loaders(ImageNet(root=str(tmp_path), **SMALL), "cpu", 5)
        next(iter(stopped))
        _, resumed, _ = loaders(ImageNet(root=str(tmp_path), **(SMALL | {"workers": workers})), "cpu", 5)
        resumed.load_state_dict(stopped.state_dict())
        rest = list(resumed)
        assert len(rest) == 2
        assert all(torch.equal(mine.images, theirs.images) for mine, theirs in zip(rest, whole[1:], strict=True))


def test_missing_folders(tmp_path):
    message = refused(tmp_path)
    assert message == (
        f"data.root = '{tmp_path}' must hold train/<class>/*.JPEG and val/<class>/*.JPEG, but {tmp_path}/train is not "
        "there: ImageNet (ILSVRC2012) is to be had from image-net.org"
    )
    (tmp_path / "train").mkdir()
    assert f", but {tmp_path}/train has no class folders: " in refused(tmp_path)
    write_images(tmp_path / "set")
    for file in (tmp_path / "set/train/n00000001").iterdir():
        file.unlink()
    lacking = f": no file in {tmp_path}/set/train/n00000001 is an image (.jpg .jpeg .png "
    assert lacking in refused(tmp_path / "set")
    for file in (tmp_path / "set/train/n00000000").iterdir():
        file.unlink()
    assert f": no file in {tmp_path}/set/train/n00000000 and 1 more is an image" in refused(tmp_path / "set")
    shutil.rmtree(tmp_path / "set")
    write_images(tmp_path / "set")
    shutil.rmtree(tmp_path / "set/val")
    assert f"but {tmp_path}/set/val is not there: " in refused(tmp_path / "set")


def test_a_missing_relative_folder_is_said_with_the_folder_it_is_looked_for_in(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    where = f"(a relative data.root is looked for below the present folder, {tmp_path})"
    assert f"but set/train is not there {where}: ImageNet" in refused("set")


def test_class_folders_that_do_not_fit(tmp_path):
    write_images(tmp_path)
    message = refused(tmp_path, classes=1000)
    assert message == (f"data.classes = 1000, but data.root = '{tmp_path}' holds 3 classes: set data.classes = 3")
    shutil.rmtree(tmp_path / "val/n00000001")
    assert "the class folder 'n00000001' is in train, but not in val: give both the same" in refused(tmp_path)
    (tmp_path / "train/n00000001").rename(tmp_path / "aside")
    (tmp_path / "train/n00000002").rename(tmp_path / "aside2")
    assert "the class folder 'n00000002' is in val, but not in train: give both the same" in refused(tmp_path)


@pytest.mark.parametrize(("processors", "workers"), [(2, 2), (64, 16), (None, 1)])
def test_as_many_workers_as_the_machine_has_use_for(tmp_path, monkeypatch, processors, workers):
    write_images(tmp_path)
    monkeypatch.setattr(os, "cpu_count", lambda: processors)
    settings = {key: value for key, value in SMALL.items() if key != "workers"}
    _, train, _ = loaders(ImageNet(root=str(tmp_path), **settings), "cpu", 0)
    assert train.workers == workers


def test_a_damaged_file_is_named_and_left_out(tmp_path):
    write_images(tmp_path)
    path = tmp_path / "val/n00000002/n00000002_0.JPEG"
    path.write_bytes(path.read_bytes()[:200])
    _, _, test = loaders(ImageNet(root=str(tmp_path), **SMALL), "cpu", 0)
    with pytest.warns(RuntimeWarning, match=f"^left out, as it cannot be read: {path}: "):
        batches = list(test)
    assert torch.cat([batch.labels for batch in batches]).tolist() == [0, 0, 1, 1, 2]


def test_images_that_grow(tmp_path):
    write_images(tmp_path)
    fields = SMALL | {"start_size": 8, "grow_epochs": 2}
    _, train, test = loaders(ImageNet(root=str(tmp_path), **fields), "cpu", 0)
    assert train.plan == ViewPlan(16, 18, 8, 2)
    assert [{batch.images.shape[2] for batch in train} for _ in range(3)] == [{8}, {8}, {16}]
    assert {batch.images.shape[2] for batch in test} == {16}


def test_every_size_that_comes_before_the_last_is_announced():
    """An engine looks at them all before the first step: one that does not fit ends no run in mid-training."""
    assert ImageNet(size=64, start_size=32, grow_epochs=4).smaller_sizes() == [(32, 32), (40, 40), (48, 48), (56, 56)]
    assert ImageNet(size=64).smaller_sizes() == []


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"batch": 0}, "data.batch = 0 must be at least 1"),
        ({"size": 0}, "data.size = 0 must be at least 1"),
        ({"classes": 1}, "data.classes = 1 must be at least 2"),
        ({"workers": -1}, "data.workers = -1 must not be negative; 0 means no processes of their own"),
        ({"resize": 200}, "data.resize = 200 must not be below data.size = 224; 0 means size * 256 / 224"),
        (
            {"start_size": 128},
            "data.grow_epochs = 0 does not fit data.start_size = 128: set both, or neither",
        ),
        (
            {"grow_epochs": 3},
            "data.grow_epochs = 3 does not fit data.start_size = 0: set both, or neither",
        ),
        (
            {"start_size": 224, "grow_epochs": 3},
            "data.start_size = 224 must be from 1 to below data.size = 224; 0: size",
        ),
    ],
)
def test_settings_that_do_not_do(fields, message):
    with pytest.raises(UserError) as caught:
        ImageNet(**fields)
    assert str(caught.value) == message


def test_too_few_images_for_a_batch(tmp_path):
    write_images(tmp_path)
    assert refused(tmp_path, batch=13).startswith("data.batch = 13 is more than the 12 training images")
