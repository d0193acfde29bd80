"""docs/data.md: its code runs, its table and its tree are true."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import mlaan.data
from data.official_files import MEMBERS, write_cifar10, write_cifar100, write_images, write_stl10, write_svhn
from mlaan.config import DataConfig
from mlaan.data import facts

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/data.md").read_text(encoding="utf-8")
STRIPES, USE = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
def names(monkeypatch):
    """What the page's code defines; the data set it registers is forgotten again, one that a reader put in is not."""
    before = dict(DataConfig.choices)
    DataConfig.choices.pop("stripes", None)
    defined = {"__name__": "page"}
    try:
        exec(compile(STRIPES, "docs/data.md", "exec"), defined)
        monkeypatch.setattr(mlaan.data, "Stripes", defined["Stripes"], raising=False)
        exec(compile(USE, "docs/data.md", "exec"), defined)
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


def test_the_command_line_knows_the_set_once_the_page_is_followed(tmp_path):
    [file] = re.findall(r"The whole file `engine/(\S+)`:", PAGE)
    [(init, line, name)] = re.findall(r'In `engine/(\S+)` add `(.+?)` to the imports and `(".+?")` to\s`__all__`', PAGE)
    shutil.copytree(ROOT / "engine/mlaan", tmp_path / "mlaan", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / file).write_text(STRIPES)
    lines = (tmp_path / init).read_text().splitlines()
    for new, kind in ((line, "from mlaan.data."), (f"    {name},", '    "S')):
        alike = [number for number, other in enumerate(lines) if other.startswith(kind)]
        if new not in lines:
            lines.insert(next((number for number in alike if lines[number] > new), alike[-1] + 1), new)
    (tmp_path / init).write_text("\n".join(lines))
    words = ["-m", "mlaan.cli", "plan", "--data.name", "stripes", "--data.batch", "16"]
    for command in (words, ["-c", USE]):
        environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
        done = subprocess.run(
            [sys.executable, *command], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr


def test_the_table_names_every_set_with_its_batch():
    rows = [line.split("|")[1:] for line in PAGE.splitlines() if re.match(r"\| `.*\| \d+ \|", line)]
    batches = {name: int(row[2]) for row in rows for name in re.findall(r"`(\w+)`", row[0])}
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
    assert len(shown["data/imagenet/"]) == 2
    for pattern in shown["data/imagenet/"]:
        assert list((tmp_path / "data/imagenet").glob(pattern.replace("<class>", "*")))
