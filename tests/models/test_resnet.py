"""ResNets: torchvision's names and outputs, and the CIFAR family's sizes."""

import pytest
import torch
import torchvision
from torch import nn

from mlaan import Backbone, UserError
from mlaan.models import BACKBONES, CifarResNet, as_backbone, build


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50"])
def test_imagenet_nets_are_torchvisions(name):
    """State dicts load both ways, and the view through stem, blocks and classifier gives the same logits."""
    torch.manual_seed(0)
    theirs, ours = torchvision.models.get_model(name, weights=None), build(name, 1000)
    assert ours.name == name
    ours.net.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(ours.net.state_dict())
    images = torch.randn(2, 3, 64, 64)
    theirs.eval(), ours.net.eval()
    with torch.no_grad():
        expected = theirs(images)
        assert torch.equal(ours(images), expected)
        assert torch.equal(ours.net(images), expected)


@pytest.mark.parametrize(("depth", "parameters"), [(20, 272_474), (32, 466_906), (56, 855_770), (110, 1_730_714)])
def test_cifar_nets(depth, parameters):
    backbone = build(f"resnet{depth}", 10)
    assert sum(p.numel() for p in backbone.net.parameters()) == parameters
    assert len(backbone.blocks) == (depth - 2) // 2
    assert backbone.blocks[-1].label == f"3.{(depth - 2) // 6 - 1}"
    assert backbone.block_shapes((3, 32, 32))[-1] == (64, 8, 8)
    backbone.net.eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(backbone(images), backbone.net(images))


def test_grey_images_and_other_class_counts():
    for name in ("resnet20", "resnet18"):
        backbone = build(name, 7, in_channels=1)
        assert backbone.net(torch.randn(2, 1, 32, 32)).shape == (2, 7)
        assert backbone.num_classes == 7


def test_unknown_name_gives_the_nearest():
    with pytest.raises(UserError, match=r"model.name = 'resnt20' is not a backbone: did you mean 'resnet20'"):
        build("resnt20", 10)
    assert "resnet50" in BACKBONES


def test_images_that_do_not_fit():
    with pytest.raises(UserError, match=r"images of 1x32x32 .* do not fit resnet20"):
        build("resnet20", 10).block_shapes((1, 32, 32))


def test_views_on_other_models():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.classifier = nn.Conv2d(3, 4, 3), nn.Sequential(nn.Flatten(), nn.LazyLinear(5))
            self.blocks = nn.ModuleList(nn.Conv2d(4, 4, 1) for _ in range(3))

    assert [block.label for block in as_backbone(Own()).blocks] == ["1.0", "1.1", "1.2"]
    assert as_backbone(CifarResNet(20)).name == "resnet20"
    assert as_backbone(torchvision.models.resnet101()).name == "resnet101"
    with pytest.raises(UserError, match=r"model = Linear does not say what its blocks are"):
        as_backbone(nn.Linear(2, 2))


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
    classifier = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Linear(4, 10))
    backbone = Backbone(nn.Sequential(stem, *blocks, classifier), stem, blocks, classifier, name="preact")
    with pytest.raises(UserError, match=r"block 1.0 of preact changes its input in place: build it with inplace=False"):
        backbone.block_shapes((3, 16, 16))
