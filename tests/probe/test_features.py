"""Pooled features of a backbone's blocks."""

from functools import partial

import pytest
import torch
from torch import nn

from mlaan.errors import UserError
from mlaan.models import Backbone, CifarResNet, resnet_backbone
from mlaan.probe import pooled_features


@pytest.fixture
def backbone():
    torch.manual_seed(0)
    return resnet_backbone(CifarResNet(14))


def batches(count: int = 2, size: int = 8):
    random = torch.Generator().manual_seed(0)
    return [(torch.randn(3, 3, size, size, generator=random), torch.arange(3) + 3 * i) for i in range(count)]


def test_they_are_the_means_of_the_blocks_outputs_in_evaluation_mode(backbone):
    backbone.net.train()
    before = {name: value.clone() for name, value in backbone.net.state_dict().items()}
    depths, labels = pooled_features(backbone, batches(), [2, 6])
    assert backbone.net.training
    assert labels.tolist() == [0, 1, 2, 3, 4, 5]
    for name, value in backbone.net.state_dict().items():
        assert torch.equal(value, before[name]), name
    backbone.net.eval()
    for place, done in ((0, 2), (1, 6)):
        h = backbone.stem(torch.cat([images for images, _ in batches()]))
        for block in backbone.blocks[:done]:
            h = block.module(h)
        expected = torch.stack([image.flatten(1).sum(1) / image[0].numel() for image in h])
        assert not depths[place].requires_grad
        torch.testing.assert_close(depths[place], expected)


def test_tokens_are_averaged_and_plain_vectors_stay():
    blocks = [nn.Sequential(nn.Flatten(2), nn.Linear(4, 5)), nn.Flatten(1)]
    net = nn.Sequential(nn.Identity(), *blocks, nn.Linear(15, 2))
    backbone = Backbone(net, net[0], blocks, net[-1])
    images = torch.randn(4, 3, 2, 2)
    depths, _ = pooled_features(backbone, [(images, torch.zeros(4, dtype=torch.int64))], [1, 2])
    tokens = blocks[0](images)
    torch.testing.assert_close(depths[0], (tokens[:, 0] + tokens[:, 1] + tokens[:, 2]) / 3)
    torch.testing.assert_close(depths[1], tokens.flatten(1))


def test_in_a_lower_precision_the_means_are_still_of_the_weights_dtype(backbone):
    bfloat16 = partial(torch.autocast, "cpu", torch.bfloat16)
    exact, _ = pooled_features(backbone, batches(), [6])
    [rough], _ = pooled_features(backbone, batches(), [6], bfloat16)
    assert rough.dtype == torch.float32
    assert not torch.equal(rough, rough.bfloat16().float())
    assert 0 < (rough - exact[0]).abs().max() < 0.05


def test_nothing_to_probe_is_said(backbone):
    with pytest.raises(UserError, match="nothing to probe"):
        pooled_features(backbone, [], [1])


@pytest.mark.parametrize("value", [torch.inf, torch.nan], ids=str)
def test_what_is_not_finite_is_said(backbone, value):
    nn.init.constant_(backbone.blocks[3].module.bn2.bias, value)
    pooled_features(backbone, batches(), [3])
    with pytest.raises(UserError, match=r"block 2\.1 of .* is not finite"):
        pooled_features(backbone, batches(), [3, 4])
    assert backbone.net.training
