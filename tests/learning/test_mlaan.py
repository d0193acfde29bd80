"""MLAAN's losses, leap networks and twins: what is built, from what, and what is shared."""

from itertools import pairwise

import pytest
import torch
import torchvision.models as tv
from torch import nn

from mlaan import MLAAN, Backbone, Engine, UserError
from mlaan.learning import cut
from mlaan.learning.leap import LeapNetwork, initialise, leap_rule, leap_sources
from mlaan.learning.methods.mlaan import _passes
from mlaan.models import CifarResNet, build, resnet_backbone


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


def published(name, modules):
    """End of every module and its leap, through the tables."""
    backbone = resnet_backbone(tv.get_model(name)) if name in ("resnet101", "resnet152") else build(name, 10)
    ends = [backbone.blocks[b - 1] for _, b in cut(backbone, modules, "published").spans]
    return {end.label: " ".join(b.label for b in leap_sources(backbone, modules, end)) for end in ends}


@pytest.mark.parametrize(
    ("name", "modules", "rows"),
    [
        ("resnet110", 32, {
            **{f"1.{b}": "2.0 3.0 3.2 3.17" for b in (1, 2, 4, 5, 7, 9, 11, 13, 14, 16, 17)},
            **{f"2.{b}": "3.0 3.2 3.3 3.17" for b in (1, 2, 4, 5, 7, 9, 11, 13, 14, 16)}, "2.17": "3.0 3.3 3.4 3.17",
            **{f"3.{b}": "3.8 3.17" for b in (1, 3, 4, 6)}, "3.7": "3.14 3.17", "3.9": "3.14 3.17",
            "3.11": "3.15 3.17", "3.13": "3.16 3.17", "3.15": "3.17", "3.17": "",
        }),
        ("resnet34", 16, {
            **{f"1.{b}": "2.0 2.1 3.0 4.0 4.2" for b in range(3)}, **{f"2.{b}": "2.1 3.0 4.0 4.2" for b in range(4)},
            **{f"3.{b}": "3.1 4.0 4.1" for b in range(6)}, "4.0": "4.1 4.1 4.2", "4.1": "4.1 4.2", "4.2": "",
        }),
        *[(name, sum(stages), {
            **{f"1.{b}": "2.0 3.0 4.0 4.2" for b in range(stages[0])},
            **{f"2.{b}": "3.0 4.0 4.1" for b in range(stages[1])},
            **{f"3.{b}": "4.0 4.1" for b in range(stages[2])}, "4.0": "4.1 4.2", "4.1": "4.1 4.2", "4.2": "",
        }) for name, stages in (("resnet101", (3, 4, 23, 3)), ("resnet152", (3, 8, 36, 3)))],
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)  # fmt: skip
def test_published_tables(name, modules, rows):
    assert published(name, modules) == rows


def test_a_cut_of_ones_own_falls_back_on_the_rule_where_the_table_is_silent():
    assert labels(build("resnet32", 10), 8, "3.1") == "3.2 3.3 3.4"
    assert labels(build("resnet32", 10), 8, "3.3") == "3.4"
    losses = supervision(MLAAN(), cuts=[0, 2, 4, 6, 8, 10, 12, 14]).losses
    assert all(isinstance(loss.head, LeapNetwork) for loss in losses if loss.kind == "cascaded")


def test_middle_of_resnet110s_last_stage():
    rows = published("resnet110", 54)
    assert [rows[f"3.{b}"] for b in (0, 6, 10, 11, 12, 13, 15, 16)] == [
        "3.8 3.17", "3.8 3.17", "3.14 3.17", "3.15 3.17", "3.15 3.17", "3.16 3.17", "3.16 3.17", "3.17",
    ]  # fmt: skip


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


def test_which_twin_of_the_authors_moves():
    """Only that of module K-2, even where another module's twin has the same source."""
    torch.manual_seed(0)
    engine = Engine(CifarResNet(20), MLAAN(preset="authors"), 4, cuts=[0, 4, 5, 6])  # 1 and 2 end in stage 2
    leaps = {loss.module: loss.head for loss in engine.supervision.losses if loss.kind == "cascaded"}
    assert set(leaps) == {1, 2}
    [moving] = engine.supervision.twins
    assert moving.block is leaps[2].twins["0"]
    assert moving.block is not leaps[1].twins["0"]
    assert moving.source is engine.backbone.net.layer3[0]


@pytest.mark.parametrize(("twins", "joined"), [("first", ["0"]), ("all", ["0", "1", "2", "3"]), ("none", [])])
def test_which_leap_blocks_have_twins(twins, joined):
    leap = supervision(MLAAN(twins=twins), 8, cuts="published").losses[1].head
    assert list(leap.twins) == joined
    assert len(leap.blocks) == 4


def convolution(channels_in: int, channels: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(channels_in, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU())


def test_a_stage_shares_what_reads_one_shape_alone():
    """A net that names no stages is one stage, whatever its blocks' shapes."""
    widths = [4, 4, 4, 6, 6, 6]
    blocks = [convolution(*pair) for pair in pairwise([3, *widths])]
    classifier = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Linear(6, 10))
    stem, *rest = blocks
    backbone = Backbone(nn.Sequential(*blocks, classifier), stem, rest, classifier)
    assert {block.stage for block in backbone.blocks} == {1}
    losses = Engine(backbone, MLAAN(leap="stage"), 5, input_shape=(3, 8, 8)).supervision.losses
    heads = [loss.head for loss in losses if loss.kind == "cascaded"]
    assert [isinstance(head, LeapNetwork) for head in heads] == [True] * 4
    assert heads[0] is heads[1]
    assert heads[2] is heads[3]
    assert heads[1] is not heads[2]


@pytest.mark.parametrize("leap", ["own", "live"])
def test_blocks_without_weights_can_be_leapt_over(leap):
    blocks = [convolution(4, 4), nn.MaxPool2d(2), convolution(4, 4), nn.MaxPool2d(2)]
    classifier = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Linear(4, 10))
    stem = convolution(3, 4)
    backbone = Backbone(nn.Sequential(stem, *blocks, classifier), stem, blocks, classifier)
    engine = Engine(backbone, MLAAN(leap=leap, twins="all"), 4, input_shape=(3, 8, 8))
    images, labels = torch.randn(8, 3, 8, 8), torch.arange(8)
    before, after = engine.step(images, labels), engine.step(images, labels)
    assert before.losses.isfinite().all()
    assert not torch.equal(before.losses, after.losses)


def test_fresh_blocks_are_he_normal_by_fan_out():
    torch.manual_seed(0)
    block = initialise(nn.Sequential(nn.Conv2d(64, 128, 3), nn.BatchNorm2d(128)))
    assert block[0].weight.std().item() == pytest.approx((2 / (128 * 9)) ** 0.5, rel=0.02)
    assert block[1].weight.eq(1).all()


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


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reach": 0}, "method.reach = 0 must be at least 1"),
        ({"ema": 1.5}, "method.ema = 1.5 must be from 0 to 1"),
        ({"preset": "authors", "lam": False}, "'authors' is their code with mlm, lam"),
        ({"preset": "authors", "pooled": True}, "'authors' is their code"),
        ({"preset": "light", "twins": "all"}, "method.twins = 'all' shapes leap networks, but method.preset = 'light'"),
        (
            {"lam": False, "pooled": False},
            "method.pooled = false shapes leap networks, but method.lam = false has none",
        ),
        ({"mlm": False, "reach": 3}, "method.reach = 3 is that of the cascaded losses, but method.mlm = false has"),
        ({"cascaded_weight": -1.0}, "must not be negative"),
        ({"base": "infopro", "leap": "stage"}, "a stage cannot share"),
        ({"base": "infopro", "preset": "fast"}, "a stage cannot share"),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(UserError, match=message):
        MLAAN(**settings)


def test_authors_need_as_many_modules_as_reach():
    with pytest.raises(UserError, match=r"partition.modules = 2 is below method.reach = 3"):
        supervision(MLAAN(preset="authors", reach=3), modules=2)
