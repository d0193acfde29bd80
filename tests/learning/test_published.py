"""Published tables: parameter counts of method.md's nets, and where the leap rule and the tables differ."""

from dataclasses import dataclass

import pytest
import torch

from mlaan import MLAAN, Site
from mlaan.learning import cut
from mlaan.learning.leap import leap_rule, leap_sources
from mlaan.learning.published import PUBLISHED_LEAPS
from mlaan.models import build


@dataclass
class Counts:
    """In millions, to the digits that are published; twins: every module's own, and each once."""

    backbone: float
    leap: float
    twins: float
    heads: float
    trained: float
    twins_once: float


def millions(parts) -> float:
    """A module that stands in several of the parts counts as often."""
    return sum(weight.numel() for part in parts for weight in part.parameters()) / 1e6


def count(name: str, modules: int, preset: str) -> Counts:
    """Built on the meta device, as everything is."""
    imagenet = name in ("resnet34", "resnet101", "resnet152")
    shape = (3, 224, 224) if imagenet else (3, 32, 32)
    with torch.device("meta"):
        backbone = build(name, 1000 if imagenet else 10, image_size=shape[1:])
        site = Site(backbone, cut(backbone, modules, "published"), backbone.block_shapes(shape), shape)
        losses = MLAAN(preset=preset, reach=3 if imagenet else 2).supervise(site).losses
    leaps = [loss.head for loss in losses if loss.kind == "cascaded"]
    own = [loss.head for loss in losses if loss.kind == "independent" and loss.head is not backbone.classifier]
    heads = millions(leap.head for leap in leaps) + millions(own)
    leap = millions(leap.blocks for leap in leaps)
    once = {id(weight): weight.numel() for leap in leaps for weight in leap.twins.parameters()}
    net = millions([backbone.net])
    return Counts(
        net, leap, millions(leap.twins for leap in leaps), heads, net + leap + heads, sum(once.values()) / 1e6
    )


# name, modules: backbone, leap, twins used, heads used, trained (method.md, "What it costs")
PUBLISHED = [
    ("resnet32", 8, 0.467, 1.59, 0.31, 0.01, 1.84),
    ("resnet32", 15, 0.467, 3.17, 0.66, 0.01, 3.43),
    ("resnet110", 32, 1.73, 6.76, 1.46, 0.03, 8.30),
    ("resnet110", 54, 1.73, 11.4, 2.56, 0.05, 13.0),
    ("resnet34", 16, 21.8, 149.0, 18.4, None, 161.2),
    ("resnet101", 33, 44.5, 344.6, 155.0, None, 455.9),
]


def agrees(ours: float, published: float) -> bool:
    """To the last digit that is published."""
    digits = len(str(published).partition(".")[2])
    return round(ours, digits) == published


@pytest.mark.parametrize("row", PUBLISHED, ids=lambda row: f"{row[0]}-{row[1]}")
def test_parameter_counts_are_the_published_ones_less_what_is_shared(row):
    name, modules, backbone, leap, twins, heads, trained = row
    ours = count(name, modules, "paper")  # a leap network for every module but the last, as the authors' objects
    assert agrees(ours.backbone, backbone)
    assert agrees(ours.leap, leap)
    assert agrees(ours.twins, twins)
    if heads is not None:
        assert abs(ours.heads - heads) < 0.006
    assert ours.twins_once < 0.75 * ours.twins  # twins of one source are one
    theirs = count(name, modules, "authors")  # trained: without the first reach - 1 modules, which have no loss
    # ResNet-34: the table also counts the head of a module that has no loss, 256 x 1000 + 1000 weights
    extra = 0.257 if name == "resnet34" else 0.0
    assert agrees(theirs.trained + extra, trained)
    assert theirs.leap < ours.leap


def test_where_the_rule_and_the_tables_differ(capsys):
    """Printed with -s; the count of each net is pinned, so that a change of rule or tables is seen."""
    differ = {}
    for (name, modules), _ in PUBLISHED_LEAPS.items():
        with torch.device("meta"):
            backbone = build(name, 10, image_size=(64, 64))
        ends = [backbone.blocks[b - 1] for _, b in cut(backbone, modules, "published").spans]
        rows = []
        for end in ends[:-1]:
            table, rule = (
                " ".join(block.label for block in blocks)
                for blocks in (leap_sources(backbone, modules, end), leap_rule(backbone, end))
            )
            if table != rule:
                rows.append(f"{name} in {modules}, module up to {end.label}: published {table}, by the rule {rule}")
        differ[name, modules] = f"{len(rows)} of {len(ends) - 1}"
        print("\n".join(rows))
    assert "module up to 1.4: published 2.0 3.0 3.3 3.4, by the rule 2.0 3.0 3.2 3.4" in capsys.readouterr().out
    assert differ == {
        ("resnet32", 8): "2 of 7",
        ("resnet32", 15): "2 of 14",
        ("resnet110", 32): "10 of 31",
        ("resnet110", 54): "16 of 53",
        ("resnet34", 16): "15 of 15",
        ("resnet101", 33): "31 of 32",
        ("resnet152", 50): "48 of 49",
    }
