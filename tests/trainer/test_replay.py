"""A kept step that is run again is the run's own: its weights, random numbers, images and their normalisation."""

import math
from pathlib import Path

import pytest
import torch

from mlaan import checkpoint
from mlaan.build import Parts, build
from mlaan.cli import main
from mlaan.config import Config, dumps
from mlaan.engine import Engine
from mlaan.observe.incident import Incident
from mlaan.replay import Replay, plain, replay
from trainer.tiny import config, flags, one_thread

__all__ = ["one_thread"]
NET = """\
from torch import nn

from mlaan import Backbone


class Root(nn.Module):
    def forward(self, h):
        return h + (0 * h).sqrt()


def noisy(num_classes, in_channels):
    return net(num_classes, in_channels, nn.Dropout())


def rooted(num_classes, in_channels):
    return net(num_classes, in_channels, Root())


def net(num_classes, in_channels, last):
    stem = nn.Conv2d(in_channels, 8, 3, padding=1)
    blocks = [nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), last) for _ in range(4)]
    classifier = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Linear(8, num_classes))
    return Backbone(nn.Sequential(stem, *blocks, classifier), stem, blocks, classifier)
"""


@pytest.fixture
def nets(tmp_path) -> Path:
    file = tmp_path / "nets.py"
    file.write_text(NET)
    return file


def test_a_replayed_step_gives_the_losses_of_the_run(tmp_path, monkeypatch, capsys, nets):
    """By a method that undoes the images' normalisation; the losses are spoiled after the step is taken."""
    real, seen = Engine.step, []

    def step(self, images, labels):
        result = real(self, images, labels)
        seen.append((images.clone(), labels.clone(), result.losses.clone()))
        if torch.equal(images, third):
            result.losses.fill_(torch.nan)
        return result

    words = flags(tmp_path / "run", model__name=f"{nets}:noisy", method__name="infopro")
    place = words.index("--method.preset")
    del words[place : place + 2]
    third = [images for images, _ in build(config()).train_batches][2]
    monkeypatch.setattr(Engine, "step", step)
    assert main(["train", *words]) == 2
    in_the_run = seen[-1]
    assert torch.equal(in_the_run[0], third)
    capsys.readouterr()
    torch.manual_seed(5)
    assert main(["replay", str(tmp_path / "run" / "incidents" / "epoch-1-step-3.pt")]) == 1
    assert "all is finite here" in capsys.readouterr().out
    assert all(torch.equal(mine, its) for mine, its in zip(seen[-1], in_the_run, strict=True))


def run_again(settings: Config, parts: Parts) -> Replay:
    """The step that comes first, from a state that may have been spoiled."""
    engine, dataset = parts.engine, parts.dataset
    images, labels = next(iter(parts.train_batches))
    normalisation = tuple(dataset.mean), tuple(dataset.std)
    random = checkpoint.random_state(engine.device)
    incident = Incident(dumps(settings), engine.state_dict(), random, images, labels, normalisation, 1, 1, "")
    return replay(incident, plain(settings)[0])


def test_a_weight_that_was_not_finite_before_the_step_is_named():
    parts = build(config())
    parts.engine.backbone.net.get_parameter("layer1.0.conv1.weight").data[0] = math.inf
    first = run_again(config(), parts).first
    assert first.startswith("layer backbone.layer1.0.conv1 (Conv2d) in Forward(0): ")
    assert first.endswith(", of its weights not finite")


def test_a_gradient_that_is_not_finite_is_named_by_the_weight_it_came_to_first(nets):
    """The root of 0 is finite, and its slope is not."""
    settings = config(model__name=f"{nets}:rooted")
    first = run_again(settings, build(settings)).first
    assert first.startswith("the gradient of backbone.4.1.bias in Backward(1): ")


def test_an_update_that_overflows_is_named_by_its_weight():
    parts = build(config())
    parts.engine.learning_rate = 1e300
    first = run_again(config(), parts).first
    assert first == "the weight of backbone.fc.bias in Update(1): 3 of 3 values are not finite"


def test_what_a_backward_pass_uses_up_is_looked_at_too():
    """The module's input, and the cotangent of its output."""
    parts = build(config())
    looks = {look.task: look for look in run_again(config(), parts).looks}
    for module, work in enumerate(parts.engine.executor.work):
        assert looks[f"Backward({module})"].count > sum(weight.numel() for weight in work.weights)
