"""Nets that people bring: what is listed how, and a forward that does more than its blocks is found out."""

import pytest
import torch
import torchvision
from torch import nn

from mlaan import Backbone, UserError
from mlaan.models import CifarResNet, as_backbone

IMAGES = (3, 16, 16)


def convolution(a: int, b: int, stride: int = 1) -> nn.Module:
    return nn.Sequential(nn.Conv2d(a, b, 3, stride, 1), nn.BatchNorm2d(b), nn.ReLU())


def head(channels: int = 8, classes: int = 5) -> nn.Module:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Linear(channels, classes))


class Own(nn.Module):
    """Three parts by name; `forward` may be spoiled."""

    spoiled = False

    def __init__(self):
        super().__init__()
        self.stem, self.classifier = convolution(3, 4), head()
        self.blocks = nn.ModuleList([convolution(4, 4), convolution(4, 8, 2), convolution(8, 8)])

    def forward(self, images):
        h = self.stem(images)
        for block in self.blocks:
            h = block(h)
            if self.spoiled:
                h = 1.001 * h
        return self.classifier(h)


def test_parts_by_their_names():
    assert [block.label for block in as_backbone(Own()).blocks] == ["1.0", "1.1", "1.2"]
    assert [block.label for block in as_backbone(Own(), IMAGES).blocks] == ["1.0", "2.0", "2.1"]
    assert as_backbone(Own(), IMAGES).name == "Own"


def test_a_sequential_is_stem_blocks_classifier():
    net = nn.Sequential(convolution(3, 4), convolution(4, 8, 2), convolution(8, 8), head())
    backbone = as_backbone(net, IMAGES)
    assert (backbone.stem, backbone.classifier) == (net[0], net[3])
    assert [block.module for block in backbone.blocks] == [net[1], net[2]]
    assert backbone.num_classes == 5
    with pytest.raises(UserError, match=r"model = Sequential of 2 parts: it needs a stem, blocks and a classifier"):
        as_backbone(nn.Sequential(convolution(3, 4), head()))


def test_nets_that_are_known():
    assert as_backbone(CifarResNet(20)).name == "resnet20"
    with torch.device("meta"):
        assert as_backbone(torchvision.models.resnet101(), (3, 64, 64)).name == "resnet101"
    given = as_backbone(Own())
    assert as_backbone(given, IMAGES) is given


def test_a_net_without_lists():
    with pytest.raises(UserError, match=r"model = Linear does not say what its blocks are .*: pass mlaan.Backbone\("):
        as_backbone(nn.Linear(2, 2))


@pytest.mark.parametrize("given", ["module", "view"])
def test_a_forward_that_does_more_is_found_out(given):
    net = Own()
    net.spoiled = True
    model = net if given == "module" else Backbone(net, net.stem, list(net.blocks), net.classifier)
    with pytest.raises(UserError, match=r"model = Own computes other logits in evaluation mode than its stem, blocks"):
        as_backbone(model, IMAGES)


def test_a_forward_that_does_more_in_training_alone_is_found_out():
    class Dropped(Own):
        def forward(self, images):
            logits = super().forward(images)
            return logits.roll(1, dims=0) if self.training else logits

    class WithAuxiliary(Own):
        def forward(self, images):
            logits = super().forward(images)
            return (logits, logits) if self.training else logits

    with pytest.raises(UserError, match="model = Dropped computes other logits in training mode"):
        as_backbone(Dropped(), IMAGES)
    with pytest.raises(UserError, match="returns something else than logits in training mode"):
        as_backbone(WithAuxiliary(), IMAGES)


def test_parts_outside_the_net_change_their_mode_with_it():
    """A part may wrap what the net calls by itself; then it is none of the net's modules."""

    class Thins(nn.Module):
        def forward(self, h):
            return nn.functional.dropout(h, 0.5, self.training)

    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.classifier = convolution(3, 4), head(4)

        def forward(self, images):
            return self.classifier(nn.functional.dropout(self.stem(images), 0.5, self.training))

    net = Whole()
    as_backbone(Backbone(net, net.stem, [Thins()], net.classifier), IMAGES)
    with pytest.raises(UserError, match="in training mode"):
        as_backbone(Backbone(net, net.stem, [nn.Identity()], net.classifier), IMAGES)


def test_random_numbers_and_buffers_make_no_difference():
    class Counts(nn.Module):
        """As spectral norm does: every training pass moves what the next one reads."""

        def __init__(self):
            super().__init__()
            self.register_buffer("passes", torch.ones(()))

        def forward(self, h):
            self.passes += self.training
            return h * self.passes

    as_backbone(nn.Sequential(convolution(3, 4), Counts(), nn.Dropout(0.5), head(4)), IMAGES)


def test_a_last_layer_of_zeros_hides_nothing():
    net = Own()
    net.spoiled = True
    nn.init.zeros_(net.classifier[-1].weight)
    with pytest.raises(UserError, match="computes other logits"):
        as_backbone(net, IMAGES)
    assert not net.classifier[-1].weight.any()


def test_blocks_that_do_next_to_nothing_at_first_hide_nothing():
    """As ConvNeXt's, whose scales start at a millionth."""

    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.scale = nn.Conv2d(8, 8, 3, padding=1), nn.Parameter(torch.full((8, 1, 1), 1e-12))

        def forward(self, h):
            return h + self.scale * self.conv(h)

    class Backwards(nn.Sequential):
        def forward(self, images):
            stem, *blocks, classifier = self
            return classifier(nn.Sequential(stem, *blocks[::-1])(images))

    with pytest.raises(UserError, match="computes other logits"):
        as_backbone(Backwards(convolution(3, 8), Scaled(), Scaled(), head()), IMAGES)


def test_the_look_moves_nothing():
    torch.manual_seed(0)
    net = Own()
    net.blocks[1].eval()
    modes = [module.training for module in net.modules()]
    state = {key: value.clone() for key, value in net.state_dict().items()}
    random = torch.get_rng_state()
    as_backbone(net, IMAGES)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    assert [module.training for module in net.modules()] == modes


def test_other_results_than_logits():
    class Two(Own):
        def forward(self, images):
            return super().forward(images), images

    with pytest.raises(UserError, match="model = Two returns something else than logits"):
        as_backbone(Two(), IMAGES)


def test_a_forward_that_fails():
    class Needs(Own):
        def forward(self, images, mask):
            return super().forward(images)

    with pytest.raises(UserError, match=r"model = Needs fails on .* images, TypeError: .*mask"):
        as_backbone(Needs(), IMAGES)


def test_a_backbone_leaves_no_weight_out():
    parts = [nn.Linear(2, 2) for _ in range(4)]
    with pytest.raises(UserError, match=r"parameter '3.weight' of Sequential is in no stem, block or classifier"):
        Backbone(nn.Sequential(*parts), parts[0], parts[1:2], parts[2])
    with pytest.raises(UserError, match="needs at least one block"):
        Backbone(nn.Sequential(*parts), parts[0], [], parts[2])
    with pytest.raises(UserError, match=r"stages = \[2, 1\]"):
        Backbone(nn.Sequential(*parts), parts[0], parts[1:3], parts[3], stages=[2, 1])


def test_a_block_that_overwrites_its_input():
    stem, blocks = nn.Conv2d(3, 4, 3), [nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(4, 4, 3)) for _ in range(2)]
    classifier = head(4)
    backbone = Backbone(nn.Sequential(stem, *blocks, classifier), stem, blocks, classifier, name="preact")
    with pytest.raises(UserError, match=r"block 1.0 of preact changes its input in place: build it with inplace=False"):
        backbone.block_shapes(IMAGES)


def test_a_block_that_gives_no_tensor():
    class Pair(nn.Module):
        def forward(self, h):
            return h, h

    net = nn.Sequential(convolution(3, 4), Pair(), head(4))
    with pytest.raises(UserError, match=r"block 1.0 of Sequential gives a tuple: a block gives one tensor"):
        as_backbone(net, IMAGES)
