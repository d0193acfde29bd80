"""MAN and MAN++: copies, moving averages and their sum."""

import pytest
import torch

from learning.tiny import batch, listed, make, make_vit, ratios
from mlaan import UserError
from mlaan.learning import PoolLinear
from mlaan.learning.heads import DGLHead
from mlaan.learning.leap import LeapNetwork
from mlaan.learning.methods import MAN
from mlaan.learning.methods.man import ScaledNetwork


def test_every_module_looks_through_the_first_block_of_the_next():
    engine = make(MAN(), 4)
    supervision = engine.supervision
    assert listed(supervision.losses) == [(f"{i}.local", 1, 1.0) for i in range(3)] + [("3.classifier", 1, 1.0)]
    firsts = [engine.backbone.blocks[start].module for start in engine.partition.starts[1:]]
    assert [twin.source for twin in supervision.twins] == firsts
    assert [twin.keep for twin in supervision.twins] == [0.995] * 3
    for loss, twin, source in zip(supervision.losses, supervision.twins, firsts, strict=False):
        network = loss.head
        assert type(network) is LeapNetwork
        assert isinstance(network.head, DGLHead)
        assert twin.block is network.twins["0"]
        assert len(network.blocks) == 1
        for copy, trained in ((network.blocks[0], True), (twin.block, False)):
            for mine, theirs in zip(copy.parameters(), source.parameters(), strict=True):
                assert mine is not theirs
                assert torch.equal(mine, theirs)
                assert mine.requires_grad is trained


def test_the_head_reads_the_sum():
    network = make(MAN(base="light")).supervision.losses[1].head
    assert isinstance(network.head, PoolLinear)
    z = torch.randn(4, 32, 8, 8)
    both = network.blocks[0](z) + network.twins["0"](z)
    torch.testing.assert_close(network(z), network.head(both))


def test_scaled_sum():
    engine = make(MAN(base="light", scale=True))
    network = engine.supervision.losses[0].head
    assert isinstance(network, ScaledNetwork)
    assert network.scale.item() == 1.0
    z = torch.randn(4, 16, 16, 16)
    torch.testing.assert_close(network.features(z), network.blocks[0](z) + network.twins["0"](z))
    torch.nn.init.constant_(network.scale, 0.3)
    torch.nn.init.normal_(network.blocks[0].bn2.weight)
    torch.testing.assert_close(network.features(z), 0.3 * network.blocks[0](z) + 1.7 * network.twins["0"](z))
    for _ in range(2):
        engine.step(*batch())
    scales = [loss.head.scale.item() for loss in engine.supervision.losses[:-1]]
    assert len({0.3, 1.0, *scales}) == 4  # each moved, by itself


def test_averages_follow_the_weights_of_before_the_step():
    engine = make(MAN(ema=0.9))
    twin = engine.supervision.twins[0]
    start = [p.detach().clone() for p in twin.source.parameters()]
    for _ in range(2):
        before = [p.detach().clone() for p in twin.source.parameters()]
        engine.step(*batch())
    for mine, first, second in zip(twin.block.parameters(), start, before, strict=True):
        torch.testing.assert_close(mine, 0.9 * first + 0.1 * second)


@pytest.mark.parametrize("method", [MAN(), MAN(scale=True), MAN(base="predsim"), MAN(base="infopro")], ids=repr)
def test_losses_fall(method):
    assert (ratios(make(method)) < 0.95).all()


@pytest.mark.parametrize("base", ["light", "dgl", "auglocal"])
def test_tokens(base):
    assert (ratios(make_vit(MAN(base=base, scale=True))) < 0.95).all()


def test_wrong_settings():
    with pytest.raises(UserError, match=r"method.ema = 1.5 must be from 0 to 1"):
        MAN(ema=1.5)
