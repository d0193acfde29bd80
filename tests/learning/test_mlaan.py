"""MLAAN's losses, leap networks and twins: what is built, from what, and what is shared."""

import pytest
import torch

from mlaan import MLAAN, Engine, UserError
from mlaan.learning.leap import LeapNetwork, leap_rule, leap_sources
from mlaan.learning.methods.mlaan import _passes
from mlaan.models import CifarResNet, build


def supervision(method, modules=8, depth=32, cuts="even"):
    torch.manual_seed(0)
    return Engine(CifarResNet(depth), method, modules, cuts=cuts).supervision


def labels(backbone, modules, end):
    last = next(block for block in backbone.blocks if block.label == end)
    return " ".join(block.label for block in leap_sources(backbone, modules, last))


@pytest.mark.parametrize(
    ("depth", "modules", "end", "leap"),
    [
        (32, 8, "1.0", "2.0 3.0 3.2 3.4"), (32, 8, "1.4", "2.0 3.0 3.3 3.4"), (32, 8, "2.1", "3.0 3.2 3.3 3.4"),
        (32, 8, "3.0", "3.2 3.3 3.4"), (32, 8, "3.2", "3.3 3.4"), (32, 15, "1.2", "2.0 3.0 3.3 3.4"),
        (32, 15, "1.3", "2.0 3.0 3.2 3.4"), (32, 15, "3.0", "3.1 3.2 3.4"), (32, 15, "3.3", "3.4"),
        (32, 15, "3.4", ""), (110, 54, "1.5", "2.0 3.0 3.2 3.17"), (110, 54, "2.17", "3.0 3.3 3.4 3.17"),
        (110, 54, "3.6", "3.8 3.17"), (110, 54, "3.7", "3.14 3.17"), (110, 54, "3.16", "3.17"),
        (20, 9, "1.0", "2.0 3.0 3.1 3.2"), (20, 9, "2.2", "3.0 3.1 3.2"), (20, 9, "3.0", "3.1 3.2"),
        (20, 9, "3.2", ""),
    ],
)  # fmt: skip
def test_leap_sources(depth, modules, end, leap):
    assert labels(build(f"resnet{depth}", 10), modules, end) == leap


def test_rule_gives_the_regular_rows_of_the_published_tables():
    backbone = build("resnet32", 10)
    for end in ("1.0", "1.1", "1.3", "2.0", "2.4", "3.0", "3.1", "3.2", "3.3", "3.4"):
        last = next(block for block in backbone.blocks if block.label == end)
        assert leap_rule(backbone, last) == leap_sources(backbone, 15, last), end


def test_paper_losses():
    losses = supervision(MLAAN(reach=3)).losses
    assert [loss.name for loss in losses[:4]] == ["0.independent", "0.cascaded", "1.independent", "1.cascaded"]
    assert losses[-1].name == "7.classifier"
    assert [loss.reach for loss in losses] == [1, 1, 1, 2, *[1, 3] * 5, 3]
    assert {loss.weight for loss in losses[:-1]} == {0.001, 0.999}
    assert losses[-1].weight == 1.0
    assert all(isinstance(loss.head, LeapNetwork) for loss in losses if loss.kind == "cascaded")


def test_light_has_no_leap_network_and_no_twin():
    light = supervision(MLAAN(preset="light"))
    assert not light.twins
    assert not any(isinstance(loss.head, LeapNetwork) for loss in light.losses)
    assert [x.name for x in supervision(MLAAN(lam=False)).losses] == [x.name for x in light.losses]


def test_leaps_without_cascade():
    losses = supervision(MLAAN(mlm=False)).losses
    assert [(loss.reach, loss.weight) for loss in losses] == [(1, 1.0)] * 8
    assert all(isinstance(loss.head, LeapNetwork) for loss in losses[:-1])


def test_a_weight_of_zero_builds_no_head():
    assert all(loss.kind != "independent" for loss in supervision(MLAAN(independent_weight=0.0)).losses)


def test_copies_start_equal_and_twins_of_one_source_are_one():
    backbone = CifarResNet(32)
    engine = Engine(backbone, MLAAN(), 8, cuts="published")
    leap = engine.supervision.losses[1].head
    source = backbone.layer2[0]
    for copy in (leap.blocks[0], leap.twins["0"]):
        for p, q in zip(copy.parameters(), source.parameters(), strict=True):
            assert torch.equal(p, q)
            assert p is not q
    assert len(engine.supervision.twins) == 4  # of 2.0, 3.0, 3.2 and 3.3
    assert engine.supervision.losses[3].head.twins["0"] is leap.twins["0"]
    assert all(p.requires_grad for p in leap.blocks.parameters())
    assert not any(p.requires_grad for p in leap.twins.parameters())
    assert not any("running" in name for name, _ in leap.named_buffers())


def test_authors_preset_on_a_three_stage_net():
    s = supervision(MLAAN(preset="authors"), cuts="published")
    assert [loss.module for loss in s.losses] == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7]
    assert len(s.twins) == 1  # only the twin of module K-2 moves
    assert s.twins[0].keep == 0.995
    assert s.statistics == (2, 3, 3, 3, 3, 3, 3, 2)


def test_authors_preset_on_a_four_stage_net():
    torch.manual_seed(0)
    engine = Engine(build("resnet18", 10).net, MLAAN(preset="authors", reach=3), 8, input_shape=(3, 64, 64))
    s = engine.supervision
    assert s.statistics == (2, 3, 4, 4, 4, 4, 3, 2)
    assert [(x.module, x.reach, x.weight) for x in s.losses[-2:]] == [(7, 1, 0.001), (7, 3, 0.999)]
    assert s.losses[-1].head is s.losses[-2].head
    assert [round(t.keep, 9) for t in s.twins] == [0.995, 0.995, 0.995, 0.995, 0.995**2]
    assert len({id(t.block) for t in s.twins}) == 5
    leap = s.losses[1].head
    weights = [leap.blocks[0].conv1.weight, leap.twins["0"].conv1.weight, s.twins[0].source.conv1.weight]
    assert not any(torch.equal(weights[i], weights[j]) for i, j in ((0, 1), (0, 2), (1, 2)))


@pytest.mark.parametrize(("modules", "reach", "passes"), [
    (4, 2, (2, 3, 3, 2)), (2, 2, (2, 2)), (6, 3, (2, 3, 4, 4, 3, 2)), (3, 3, (2, 2, 2)), (3, 1, (2, 2, 2)),
])  # fmt: skip
def test_passes_of_the_authors_code(modules, reach, passes):
    assert _passes(modules, reach) == passes


def test_parameter_counts_are_the_published_ones_less_what_is_not_built():
    """method.md's table counts the authors' objects: leap 3.17 M; stored twins equal leaps, ours are four blocks."""
    engine = Engine(CifarResNet(32), MLAAN(), 15, cuts="published")
    leap = sum(
        p.numel()
        for loss in engine.supervision.losses
        if loss.kind == "cascaded"
        for p in loss.head.blocks.parameters()
    )
    assert round(leap / 1e6, 2) == 3.17
    twins = {id(p): p.numel() for twin in engine.supervision.twins for p in twin.block.parameters()}
    used = sum(
        p.numel() for loss in engine.supervision.losses if loss.kind == "cascaded" for p in loss.head.twins.parameters()
    )
    assert round(used / 1e6, 2) == 0.66
    assert sum(twins.values()) < used / 1.7


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reach": 0}, "method.reach = 0 must be at least 1"),
        ({"ema": 1.5}, "method.ema = 1.5 must be from 0 to 1"),
        ({"preset": "authors", "lam": False}, "'authors' has both mlm and lam"),
        ({"cascaded_weight": -1.0}, "must not be negative"),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(UserError, match=message):
        MLAAN(**settings)


def test_authors_need_as_many_modules_as_reach():
    with pytest.raises(UserError, match=r"partition.modules = 2 is below method.reach = 3"):
        supervision(MLAAN(preset="authors", reach=3), modules=2)
