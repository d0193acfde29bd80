"""AugLocal: which blocks are sampled, how they chain, what is built from them."""

import pytest
import torch
import torchvision.models as tv
from torch import nn

from learning.tiny import listed, make, make_vit, ratios
from mlaan import Backbone, UserError
from mlaan.learning import PoolLinear, Site, cut
from mlaan.learning.leap import LeapNetwork
from mlaan.learning.methods import HPFF, AugLocal
from mlaan.learning.methods.auglocal import chained, sampled
from mlaan.models import CifarResNet, resnet_backbone


@pytest.mark.parametrize(
    ("depth", "coefficient", "depths"),
    [(3, 0.5, [3] * 7 + [2] * 7), (1, 0.5, [1] * 14), (5, 1.0, [5, 5, 4, 4, 4, 3, 3, 3, 3, 2, 2, 2, 1, 1]),
     (4, 0.0, [4] * 14), (5, 0.5, [5] * 4 + [4] * 6 + [3] * 4)],
)  # fmt: skip
def test_depth_falls_linearly(depth, coefficient, depths):
    method = AugLocal(depth=depth, coefficient=coefficient)
    assert [method.depth_of(i, 15) for i in range(14)] == depths
    assert method.depth_of(0, 2) == depth


def authors_places(layer, layers, depth):
    """Their rule, where the stem is layer 0."""
    if depth >= layers - 1 - layer:
        return list(range(layer + 1, layers))
    return [round(layer + (layers - layer - 1) / depth * i) for i in range(1, depth + 1)]


@pytest.mark.parametrize("blocks", [15, 54])
@pytest.mark.parametrize("depth", [1, 2, 3, 6])
def test_blocks_are_sampled_as_the_authors_do(blocks, depth):
    for last in range(blocks):
        theirs = authors_places(last + 1, blocks + 1, depth)
        assert sampled(last, blocks, depth) == [place - 1 for place in theirs]


def labels(net, end, depth, size=32):
    backbone = resnet_backbone(net)
    last = next(i for i, block in enumerate(backbone.blocks) if block.label == end)
    shapes = backbone.block_shapes((3, size, size))
    path = chained(last, sampled(last, len(shapes), depth), shapes)
    return " ".join(backbone.blocks[b].label for b in path)


@pytest.mark.parametrize(
    ("end", "depth", "path"),
    [
        ("1.0", 2, "2.0 3.0"), ("1.0", 3, "2.0 2.4 3.0"), ("1.4", 5, "2.0 2.3 3.0 3.2 3.4"), ("2.0", 2, "2.4 3.0"),
        ("3.0", 2, "3.2 3.4"), ("3.2", 2, "3.3 3.4"), ("3.3", 3, "3.4"), ("3.4", 2, ""), ("1.0", 1, "2.0 3.0"),
    ],
)  # fmt: skip
def test_blocks_that_change_the_shape_stand_in_for_those_behind_them(end, depth, path):
    assert labels(CifarResNet(32), end, depth) == path


@pytest.mark.parametrize("net", ["resnet18", "resnet50", "resnext50_32x4d", "wide_resnet50_2"])
@pytest.mark.parametrize("depth", [1, 2, 4])
def test_any_residual_net_chains_behind_every_block(net, depth):
    with torch.device("meta"):
        backbone = resnet_backbone(tv.get_model(net, num_classes=7))
    n = len(backbone.blocks)
    site = Site(backbone, cut(backbone, n), backbone.block_shapes((3, 64, 64)), (3, 64, 64))
    method = AugLocal(depth=depth, coefficient=0.0)
    for i, shape in enumerate(site.outputs[:-1]):
        with torch.device("meta"):
            head = method.auxiliary(site, i, shape).head
        assert head(torch.empty(2, *shape, device="meta")).shape == (2, 7)
        crossed = 4 - backbone.blocks[i].stage
        assert min(depth, n - 1 - i) <= len(head.blocks) <= max(depth, crossed)


class Wave(nn.Module):
    """A block of one's own, of any channels and stride."""

    def __init__(self, given, width, stride=1):
        super().__init__()
        self.conv = nn.Conv2d(given, width, 3, stride, 1)

    def forward(self, h):
        return torch.sin(self.conv(h))


def waves(*blocks):
    classifier = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Linear(blocks[-1].conv.out_channels, 10))
    return Backbone(nn.Sequential(*blocks, classifier), nn.Identity(), blocks, classifier, name="waves")


def test_blocks_of_ones_own_chain_without_stages():
    engine = make(
        AugLocal(depth=1), 4, waves(Wave(3, 4), Wave(4, 4), Wave(4, 8, 2), Wave(8, 8), Wave(8, 6), Wave(6, 6))
    )
    widths = [[block.conv.out_channels for block in x.head.blocks] for x in engine.supervision.losses[:-1]]
    assert widths == [[8, 6], [6], [6]]
    assert (ratios(engine) < 1).all()


def test_networks_have_weights_of_their_own_and_batch_statistics():
    engine = make(AugLocal())
    losses = engine.supervision.losses
    assert listed(losses) == [("0.local", 1, 1.0), ("1.local", 1, 1.0), ("2.classifier", 1, 1.0)]
    backbone = {id(p) for p in engine.backbone.net.parameters()}
    for loss in losses[:-1]:
        assert isinstance(loss.head, LeapNetwork)
        assert isinstance(loss.head.head, PoolLinear)
        assert not loss.head.twins
        assert not backbone & {id(p) for p in loss.head.parameters()}
        assert all(p.requires_grad for p in loss.head.parameters())
        assert not list(loss.head.buffers())
    source = engine.backbone.net.layer2[0].conv1.weight
    copy = losses[0].head.blocks[0].conv1.weight
    assert copy.shape == source.shape
    assert not torch.allclose(copy, source, atol=1e-3)


def test_transformer_blocks_are_drawn_anew():
    engine = make_vit(AugLocal(depth=1))
    source, block = engine.backbone.blocks[-1].module, engine.supervision.losses[0].head.blocks[0]
    drawn = dict(source.named_parameters())
    matrices = {name: weight for name, weight in block.named_parameters() if weight.ndim > 1}
    assert len(matrices) == 4  # attention in and out, and the perceptron's two layers
    assert not any(torch.allclose(weight, drawn[name], atol=1e-3) for name, weight in matrices.items())
    assert block.ln_1.weight.eq(1).all()


def test_losses_fall():
    assert (ratios(make(AugLocal(depth=3))) < 0.9).all()
    vit = make_vit(AugLocal(depth=2))
    assert len(vit.supervision.losses[0].head.blocks) == 2
    assert (ratios(vit) < 0.95).all()


def test_a_block_that_does_not_fit_is_told():
    class Fixed(Wave):
        def forward(self, h):
            return super().forward(h) + torch.zeros(8, 8, device=h.device)

    backbone = waves(Wave(3, 4), Fixed(4, 4), Fixed(4, 4))
    make(AugLocal(), backbone=backbone)
    with pytest.raises(UserError, match="'auglocal' cannot chain the later blocks of waves behind module 0"):
        make(HPFF(base="auglocal"), backbone=backbone)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"depth": 0}, "method.depth = 0 must be at least 1"),
        ({"coefficient": 1.5}, "method.coefficient = 1.5 must be from 0 to 1"),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(UserError, match=message):
        AugLocal(**settings)
