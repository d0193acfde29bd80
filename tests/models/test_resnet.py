"""ResNets: torchvision's names and outputs, the CIFAR family's blocks, and names by which published tables go."""

import pytest
import torch
import torchvision
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from mlaan import UserError
from mlaan.models import CifarResNet, as_backbone, build


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_imagenet_nets_are_torchvisions(name):
    """State dicts load both ways, and the view through stem, blocks and classifier gives the same logits."""
    torch.manual_seed(0)
    theirs, ours = torchvision.models.get_model(name, weights=None), build(name, 1000)
    ours.net.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(ours.net.state_dict())
    images = torch.randn(2, 3, 64, 64)
    theirs.eval(), ours.net.eval()
    with torch.no_grad():
        expected = theirs(images)
        assert torch.equal(ours(images), expected)
        assert torch.equal(ours.net(images), expected)


@pytest.mark.parametrize("depth", [20, 32])
def test_cifar_nets(depth):
    backbone = build(f"resnet{depth}", 10)
    assert len(backbone.blocks) == (depth - 2) // 2
    assert backbone.blocks[-1].label == f"3.{(depth - 2) // 6 - 1}"
    assert backbone.block_shapes((3, 32, 32))[-1] == (64, 8, 8)
    backbone.net.eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(backbone(images), backbone.net(images))


def test_parameters_to_the_last_one():
    counts = {20: 272_474, 32: 466_906, 56: 855_770, 110: 1_730_714}
    for depth, parameters in counts.items():
        assert sum(p.numel() for p in CifarResNet(depth).parameters()) == parameters


def test_grey_images_and_other_class_counts():
    for name in ("resnet20", "resnet18"):
        backbone = build(name, 7, in_channels=1)
        assert backbone.net(torch.randn(2, 1, 32, 32)).shape == (2, 7)
        assert backbone.num_classes == 7


def test_images_that_do_not_fit():
    with pytest.raises(UserError, match=r"images of 1x32x32 .* do not fit resnet20"):
        build("resnet20", 10).block_shapes((1, 32, 32))
    with pytest.raises(UserError, match=r"images of 8x3x32x32 \(C x H x W, without the batch\) do not fit resnet20"):
        build("resnet20", 10).block_shapes((8, 3, 32, 32))


def test_a_block_that_does_not_take_what_comes_before_it_is_named():
    backbone = build("resnet20", 10)
    backbone.blocks[8].module.conv1 = torch.nn.Conv2d(48, 64, 3)
    says = r"^model = resnet20: block 3.2 does not take the \(64, 8, 8\) that comes before it, for images of 3x32x32: "
    with pytest.raises(UserError, match=says) as caught:
        backbone.block_shapes((3, 32, 32))
    assert "\n" not in str(caught.value)
    backbone = build("resnet20", 10)
    backbone.last_layer.weight = torch.nn.Parameter(torch.zeros(10, 48))
    with pytest.raises(UserError, match=r"resnet20: classifier does not take the \(64, 8, 8\) that comes before it"):
        backbone.block_shapes((3, 32, 32))


def test_wide_and_grouped_nets_do_not_go_by_a_plain_ones_name():
    with torch.device("meta"):
        named = {
            "resnet26": ResNet(BasicBlock, [3, 3, 3, 3]),
            "resnext26_32x4d": ResNet(Bottleneck, [2, 2, 2, 2], groups=32, width_per_group=4),
            "wide_resnet26_2": ResNet(Bottleneck, [2, 2, 2, 2], width_per_group=128),
        }
    assert [as_backbone(net).name for net in named.values()] == list(named)
