"""A tiny network of the user's own, for `--model.name own_net.py:make`."""

from torch import nn

from mlaan import Backbone


def make(num_classes, in_channels):
    """Four blocks of 8 channels."""
    stem = nn.Conv2d(in_channels, 8, 3, padding=1)
    blocks = [nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()) for _ in range(4)]
    classifier = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Linear(8, num_classes))
    return Backbone(nn.Sequential(stem, *blocks, classifier), stem, blocks, classifier)
