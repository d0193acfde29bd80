"""docs/data.md: its code runs, its table and its tree are true."""

import re
from pathlib import Path

import pytest
import torch

from data.official_files import MEMBERS, write_cifar10, write_cifar100, write_images, write_stl10, write_svhn
from mlaan.config import DataConfig
from mlaan.data import facts

PAGE = (Path(__file__).parents[2] / "docs/data.md").read_text(encoding="utf-8")


@pytest.fixture
def names():
    """What the page's code defines; the data set it registers is forgotten again."""
    before = dict(DataConfig.choices)
    defined = {"__name__": "page"}
    try:
        for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
            exec(compile(block, "docs/data.md", "exec"), defined)
        yield defined
    finally:
        DataConfig.choices.clear()
        DataConfig.choices.update(before)


def test_the_code_runs(names):
    assert names["images"].shape == (32, 1, 16, 16)
    assert names["images"].dtype == torch.float32
    assert sorted(names["labels"].unique().tolist()) == [0, 1]
    assert names["place"]["position"] == 1
    assert len(names["train"]) == 8
    assert DataConfig.make("stripes", train_images=64).load().train_images.shape == (64, 1, 16, 16)
    said = facts(names["Stripes"]())
    assert (said.classes, said.image_shape) == (names["dataset"].classes, names["dataset"].image_shape)


def test_the_table_names_every_set_with_its_batch():
    rows = [line.split("|")[1:] for line in PAGE.splitlines() if line.startswith("| `")]
    batches = {name: int(row[2]) for row in rows for name in re.findall(r"`(\w+)`", row[0]) if name != "data"}
    assert batches == {name: DataConfig.make(name).batch for name in MEMBERS}
    for name in batches:
        count = facts(DataConfig.make(name)).train_count
        if count and name != "synthetic":
            assert any(name in row[0] and f" {count:,} +" in row[1] for row in rows)


def test_the_tree_is_what_is_read(tmp_path):
    [tree] = [block for block in re.findall(r"```text\n(.*?)```", PAGE, re.DOTALL) if "cifar-10" in block]
    shown = {line.split()[0]: line.split()[1:] for line in tree.splitlines()}
    for write, name in (
        (write_cifar10, "cifar10"),
        (write_cifar100, "cifar100"),
        (write_stl10, "stl10"),
        (write_svhn, "svhn"),
    ):
        write(tmp_path / "data" / name)
        [(folder, files)] = [(folder, files) for folder, files in shown.items() if folder.startswith(f"data/{name}/")]
        there = {path.name for path in (tmp_path / folder).iterdir()}
        assert {*files} - {"…"} <= there
        assert len(there) == len(files) + (2 if "…" in files else 0)
    write_images(tmp_path / "data/imagenet")
    for pattern in shown["data/imagenet/"]:
        assert list((tmp_path / "data/imagenet").glob(pattern.replace("<class>", "*")))
