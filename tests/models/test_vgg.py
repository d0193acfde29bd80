"""VGG's blocks: pools before them, images of any size, nothing changed in place."""

import torch
import torchvision.models as tv
from torch import nn

from mlaan.models import CifarVGG, as_backbone


def test_a_block_is_a_convolution_with_the_pool_before_it():
    backbone = as_backbone(CifarVGG(16))
    kinds = [[type(layer).__name__ for layer in block.module] for block in backbone.blocks]
    plain = ["Conv2d", "BatchNorm2d", "ReLU"]
    assert kinds == [["MaxPool2d", *plain] if i in (2, 4, 7, 10) else plain for i in range(13)]
    assert [block.stage for block in backbone.blocks] == [1, 1, 2, 2, 3, 3, 3, 4, 4, 4, 5, 5, 5]
    assert isinstance(backbone.classifier[0], nn.MaxPool2d)


def test_odd_and_small_images():
    backbone = as_backbone(CifarVGG(11, 7, 1).eval())
    assert backbone.block_shapes((1, 28, 28))[-1] == (512, 2, 2)
    for side in (8, 28, 32, 96):
        assert backbone(torch.randn(2, 1, side, side)).shape == (2, 7)


def test_torchvisions_without_batch_norm():
    with torch.device("meta"):
        net = tv.vgg19()
    backbone = as_backbone(net)
    assert len(backbone.blocks) == 16
    assert backbone.last_layer is net.classifier[-1]
    assert backbone.block_shapes((3, 64, 64))[-1] == (512, 4, 4)


def test_a_block_leaves_its_input_as_it_was():
    torch.manual_seed(0)
    h = torch.randn(2, 3, 32, 32)
    for block in as_backbone(CifarVGG(11)).blocks:
        before = h.clone()
        out = block.module(h)
        assert torch.equal(h, before)
        h = out
