"""Blocks found by tracing: exact views on nets that list no parts, and refusals of those that have none."""

import copy

import pytest
import torch
from torch import nn

from mlaan import UserError
from mlaan.models import as_backbone
from mlaan.models.listing import list_blocks

IMAGES = (3, 16, 16)


class Residual(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels)

    def forward(self, h):
        return torch.relu(h + self.norm(self.conv(h)))


class Stage(nn.Module):
    def __init__(self, a: int, b: int):
        super().__init__()
        self.downsample = nn.Sequential(nn.Conv2d(a, b, 2, 2), nn.BatchNorm2d(b))
        self.blocks = nn.Sequential(Residual(b), Residual(b))

    def forward(self, h):
        return self.blocks(self.downsample(h))


class Found(nn.Module):
    """A stem of two layers and a loose weight, stages with layers between them, functions behind the last."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU())
        self.shift = nn.Parameter(torch.randn(4, 1, 1))
        self.stages = nn.ModuleList([Stage(4, 6), Stage(6, 8)])
        self.head = nn.Linear(8, 5)

    def forward(self, images, mask=None):
        h = self.stem(images) + self.shift
        if mask is not None:
            h = h * mask
        for stage in self.stages:
            h = self.between(stage(h))
        return self.head(h.mean((2, 3)))

    def between(self, h):
        return 2 * h


def test_stages_layers_between_and_loose_weights():
    torch.manual_seed(0)
    net = Found()
    backbone = as_backbone(net, IMAGES)
    assert [block.label for block in backbone.blocks] == ["1.0", "1.1", "2.0", "2.1"]
    assert backbone.blocks[1].module is net.stages[0].blocks[1]  # nothing lies between, so the block itself
    assert any(p is net.shift for p in backbone.stem.parameters())
    twin = copy.deepcopy(net)
    images = torch.randn(4, *IMAGES)
    theirs = twin.train()(images)
    assert torch.equal(backbone(images), theirs)
    backbone(images).sum().backward()
    twin(images).sum().backward()
    for (name, ours), expected in zip(net.named_parameters(), twin.parameters(), strict=True):
        assert torch.equal(ours.grad, expected.grad), name


def test_the_view_follows_its_net_to_another_type():
    net = Found()
    backbone = as_backbone(net, IMAGES)
    net.double().eval()
    images = torch.randn(2, *IMAGES, dtype=torch.float64)
    assert torch.equal(backbone(images), net(images))


class Table(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("values", torch.randn(4, 1, 1))


class Reads(Found):
    """Its forward reads a buffer that a module without weights owns, or one of its own."""

    def __init__(self, own: bool):
        super().__init__()
        self.table = Table()
        self.own = own
        self.register_buffer("values", torch.randn(4, 1, 1))

    def forward(self, images):
        h = self.stem(images) + self.shift + (self.values if self.own else self.table.values)
        for stage in self.stages:
            h = stage(h)
        return self.head(h.mean((2, 3)))


def test_buffers_that_forward_reads():
    net = Reads(own=False)
    backbone = as_backbone(net, IMAGES)
    net.double().eval()  # a new tensor in the buffer's place
    images = torch.randn(2, *IMAGES, dtype=torch.float64)
    assert torch.equal(backbone(images), net(images))
    with pytest.raises(UserError, match=r"its forward reads the buffer 'values' itself"):
        as_backbone(Reads(own=True), IMAGES)


class Skips(Found):
    """The first stage's blocks are joined by a sum around them."""

    def forward(self, images):
        h = self.stem(images) + self.shift
        h = self.stages[0].downsample(h)
        a, b = self.stages[0].blocks
        h = self.stages[1](b(a(h)) + h)
        return self.head(h.mean((2, 3)))


def test_blocks_with_a_way_around_them_stay_in_one_piece():
    net = Skips().eval()
    backbone = as_backbone(net, IMAGES)
    assert len(backbone.blocks) == 2
    images = torch.randn(2, *IMAGES)
    assert torch.equal(backbone(images), net(images))


class Drops(Found):
    def forward(self, images):
        h = self.stem(images) + self.shift
        for stage in self.stages:
            h = nn.functional.dropout(stage(h), 0.5, self.training)
        return self.head(h.mean((2, 3)))


class Decides(Found):
    def forward(self, images):
        return super().forward(images) if images.sum() > 0 else super().forward(-images)


class Dense(Found):
    def forward(self, images):
        h = self.stem(images) + self.shift
        return self.head(self.stages[1](self.stages[0](h)).mean((2, 3)) + h.mean())


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (Drops, "does something else in training than in evaluation"),
        (Decides, "its forward cannot be traced, TraceError"),
        (Dense, "no two blocks follow each other in lists"),
    ],
)
def test_nets_that_cannot_be_listed(kind, reason):
    net = kind()
    net.stem.eval()
    with pytest.raises(UserError, match=rf"model = {kind.__name__} does not say what its blocks are \(.*{reason}"):
        as_backbone(net)
    assert net.training
    assert not net.stem.training


def test_outputs_with_channels_last_are_turned():
    """(N, H, W, C) between the blocks, as in Swin: local heads see (N, C, H, W)."""

    class Mix(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Sequential(nn.Linear(8, 8), nn.GELU())

        def forward(self, h):
            return h + self.linear(h)

    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 4, 4)
            self.blocks = nn.Sequential(*(Mix() for _ in range(3)))
            self.head = nn.Linear(8, 5)

        def forward(self, images):
            return self.head(self.blocks(self.stem(images).permute(0, 2, 3, 1)).mean((1, 2)))

    net = Last()
    assert list_blocks(net).block_shapes(IMAGES) == [(4, 4, 8)] * 3
    backbone = as_backbone(net, IMAGES)
    assert backbone.block_shapes(IMAGES) == [(8, 4, 4)] * 3
    images = torch.randn(2, *IMAGES)
    assert torch.equal(backbone(images), net(images))
