"""configs/paper: every row loads and builds, and its published figure is the right one."""

from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch

from configs import figures
from configs.readme import CONFIGS, DATA, README, rows, split, written
from mlaan import models
from mlaan.cli.settings import load_config
from mlaan.config import Config
from mlaan.data.source import ImageSource
from mlaan.learning import Site, Supervision, cut
from mlaan.plan import build_graph, make_plan
from mlaan.table.rows import PUBLISHED, published_for, read_published

ROWS = {
    f"{file.parent.name}/{file.stem}": file
    for file in sorted((file for data in DATA for file in rows(data)), key=lambda file: file.stem)  # a stable sort
}
EVERY_BLOCK = {("resnet32", 16), ("resnet110", 55), ("resnet101", 34), ("resnet152", 51)}
"""Where the papers count the stem as a module."""


@cache
def site(net: str, classes: int, shape: tuple[int, int, int], modules: int, cuts: Any) -> Site:
    """A backbone without storage, cut as the row says."""
    with torch.device("meta"):
        backbone = models.build(net, classes, shape[0])
    partition = cut(backbone, modules, cuts, shape)
    return Site(backbone, partition, backbone.block_shapes(shape), shape, normalisation=((0.5,) * 3, (0.5,) * 3))


@lru_cache(maxsize=1)
def supervision(site: Site, method: Any) -> Supervision:
    """What takes the time. SVHN's is CIFAR-10's, the row before it, as the images have the same shape."""
    with torch.device("meta"):
        return method.supervise(site)


def site_of(config: Config) -> Site:
    assert isinstance(config.data, ImageSource)
    facts = config.data.facts()
    return site(config.model.name, facts.classes, facts.image_shape, config.partition.modules, config.partition.cuts)


@pytest.mark.parametrize("file", ROWS.values(), ids=ROWS)
def test_a_row_builds_what_its_name_says(file):
    config = load_config(file, [])
    place, losses = site_of(config), supervision(site_of(config), config.method)
    net, k, method = split(file)
    assert (config.model.name, config.data.name) == (net, file.parent.name)
    assert config.partition.modules == place.modules == (k - 1 if (net, k) in EVERY_BLOCK else k)
    base = getattr(config.method, "base", "light")
    assert method.startswith(config.method.name if base == "light" else f"{base}_{config.method.name}")
    assert {loss.module for loss in losses.losses} == set(range(place.modules))
    assert all(p.is_meta for loss in losses.losses for p in loss.head.parameters())
    losses.check(place.modules)
    graph = build_graph(place.modules, losses, place.partition.modules(place.backbone))
    memory = config.memory
    plan = make_plan(graph, memory.schedule, memory.window, memory.recompute)
    assert {step.task.module for step in plan.steps} == set(range(place.modules))


def test_the_rows_are_the_published_ones_and_mlaans_grid():
    wanted = figures.OWN.keys() | figures.SECONDARY.keys() | figures.MLAAN
    unpublished = {
        *(f"svhn/resnet110_k{k}_infopro_softmax" for k in (2, 4, 8, 16)),
        *(f"stl10/resnet110_k{k}_infopro_contrastive" for k in (2, 4, 8, 16)),
        "cifar10/resnet32_k8_dgl_hpff",
        "cifar10/resnet110_k32_dgl_hpff",
    }
    assert set(ROWS) == wanted | unpublished


def test_the_published_figures_are_right():
    published = read_published(CONFIGS / "paper" / PUBLISHED)
    errors = {label: row.error for label, row in published.items()}
    assert errors == pytest.approx(figures.OWN | figures.SECONDARY)
    assert {label for label, row in published.items() if row.secondary} == set(figures.SECONDARY)
    assert {label: row.memory_gb for label, row in published.items() if row.memory_gb} == figures.MEMORY
    assert all(row.source for row in published.values())
    assert published.keys() <= ROWS.keys()


@pytest.mark.parametrize("row", ROWS)
def test_a_row_finds_its_figure(row):
    label, published = published_for(ROWS[row])
    assert label == row
    assert published.error == pytest.approx((figures.OWN | figures.SECONDARY).get(row))
    assert published.secondary == (row in figures.SECONDARY)


def test_the_readme_has_the_same_table():
    """`python tests/configs/readme.py` writes it."""
    text = README.read_text(encoding="utf-8")
    assert text == written()
    assert "| [cifar10/resnet32_k16_dgl](paper/cifar10/resnet32_k16_dgl.toml) | 16 | 15 | 160 | 16.21 |  |" in text
    assert "| 33 | 200 | 23.30 (n) |" in text


@pytest.mark.parametrize("file", sorted(CONFIGS.rglob("*.toml")), ids=lambda file: str(file.relative_to(CONFIGS)))
def test_every_file_loads(file: Path):
    if file.name != PUBLISHED:
        load_config(file, [])


@pytest.mark.parametrize(
    ("data", "batch", "rate", "epochs"),
    [("cifar10", 1024, 0.8, 400), ("svhn", 1024, 0.8, 400), ("stl10", 128, 0.1, 400), ("imagenet", 128, 0.05, 150)],
)
def test_mlaans_recipes(data, batch, rate, epochs):
    config = load_config(CONFIGS / f"paper/recipes/mlaan_{data}.toml", [])
    optim = config.optim
    assert getattr(config.data, "batch") == batch  # noqa: B009
    assert (optim.learning_rate, optim.momentum, optim.nesterov, optim.weight_decay) == (rate, 0.9, True, 1e-4)
    assert (optim.schedule, optim.warmup_epochs) == (("cosine", 0) if data == "imagenet" else ("recipe", 10))
    assert config.train.epochs == epochs


@pytest.mark.parametrize(
    ("row", "reach"),
    [
        ("cifar10/resnet32_k8_mlaan", 2),
        ("svhn/resnet110_k55_predsim_mlaan", 2),
        ("stl10/resnet32_k16_dgl_mlaan", 3),
        ("cifar10/resnet110_k32_infopro_mlaan", 3),
        ("imagenet/resnet34_k16_mlaan", 3),
        ("imagenet/resnet152_k51_auglocal_mlaan", 3),
    ],
)
def test_mlaans_reach(row, reach):
    assert getattr(load_config(ROWS[row], []).method, "reach") == reach  # noqa: B009


@pytest.mark.parametrize(
    ("row", "ends"),
    [
        ("cifar10/resnet32_k2_dgl", "2.1 3.4"),
        ("stl10/resnet110_k8_infopro_softmax", "1.4 1.11 2.0 2.7 2.14 3.3 3.10 3.17"),
        ("cifar10/resnet110_k2_infopro_balanced", "1.14 3.17"),
        ("cifar10/resnet110_k3_infopro_balanced", "1.9 2.2 3.17"),
        ("cifar10/resnet110_k4_infopro_balanced", "1.6 1.14 2.8 3.17"),
        ("imagenet/resnet101_k2_infopro_balanced", "2.0 4.2"),
        ("imagenet/resnet152_k2_infopro_balanced", "2.5 4.2"),
        ("imagenet/resnext101_32x8d_k2_infopro_balanced", "2.2 4.2"),
        ("imagenet/resnet101_k4_infopro_man", "3.0 3.9 3.17 4.2"),
    ],
)
def test_cuts_are_the_authors(row, ends):
    """Last block of every module, as InfoPro's and MAN's repositories list them."""
    place = site_of(load_config(ROWS[row], []))
    assert [place.backbone.blocks[end - 1].label for _, end in place.partition.spans] == ends.split()
