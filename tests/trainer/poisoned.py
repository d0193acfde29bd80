"""A network in whose second module a certain training image turns everything into nan."""

from pathlib import Path

import torch

from mlaan.build import build
from mlaan.config import Config

NET = """\
import torch
from torch import nn

from mlaan import Backbone


class Stem(nn.Conv2d):
    def forward(self, images):
        seen["hit"] = (images[:, 0, 0, 0] > {threshold}).any() | {always}
        return super().forward(images)


class Poisoned(nn.Conv2d):
    def forward(self, h):
        y = super().forward(h)
        return torch.where(seen["hit"], torch.nan, y) if self.training else y


class Culprit(nn.Module):
    def __init__(self):
        super().__init__()
        self.poisoned = Poisoned(8, 8, 3, padding=1)

    def forward(self, h):
        return self.poisoned(h).relu()


seen = {{}}


def make(num_classes, in_channels):
    stem = Stem(in_channels, 8, 3, padding=1)
    blocks = [nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()) for _ in range(3)]
    classifier = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Linear(8, num_classes))
    blocks.insert(2, Culprit())
    return Backbone(nn.Sequential(stem, *blocks, classifier), stem, blocks, classifier)
"""
CULPRIT = "backbone.3.poisoned"


def write_net(folder: Path, config: Config, *, always: bool = False) -> tuple[str, list[int]]:
    """The model's name, and for each of three epochs which of its batches holds the bad image, from 0."""
    batches = build(config).train_batches
    marks = [[float(images[:, 0, 0, 0].max()) for images, _ in batches] for _ in range(3)]
    largest, second = sorted({mark for epoch in marks for mark in epoch}, reverse=True)[:2]
    file = folder / "poisoned.py"
    file.write_text(NET.format(threshold=(largest + second) / 2, always=always))
    return f"{file}:make", [epoch.index(largest) for epoch in marks]


def hand_trained(config: Config, bad: list[int]) -> list[torch.Tensor]:
    """The weights after a plain loop over all batches but the bad one of each epoch."""
    from mlaan.optim.schedule import learning_rate

    parts = build(config)
    for epoch in range(config.train.epochs):
        parts.engine.learning_rate = learning_rate(config.optim, epoch, config.train.epochs)
        for place, (images, labels) in enumerate(parts.train_batches):
            if place != bad[epoch]:
                parts.engine.step(images, labels)
    return list(parts.engine.state_dict()["backbone"].values())
