"""Every method memorises 64 fixed images: the backbone alone, in evaluation mode, names more than 99 % of them."""

from dataclasses import dataclass, replace

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from exact.test_methods import BIG, VARIANTS
from mlaan import Engine
from mlaan.config import MethodConfig
from mlaan.models import build

SAMPLES = 64


@dataclass(frozen=True)
class Setting:
    """A net, its cut, and how it is trained: SGD with momentum on batches that are drawn anew for every step."""

    name: str
    modules: int
    cuts: str
    size: int
    channels: int
    batch: int
    learning_rate: float
    steps: int
    fall: float
    """What is left of the learning rate after another step."""


RESNET32 = Setting("resnet32", 8, "published", 8, 1, 32, 0.03, 80, 0.98)
RESNET50 = Setting("resnet50", 4, "even", 64, 3, 16, 0.01, 200, 0.985)
VIT_S = Setting("vit_s_16", 4, "even", 64, 3, 32, 0.005, 200, 0.985)


def digits(setting: Setting) -> tuple[Tensor, Tensor, tuple[list[float], list[float]]]:
    """The first 64 real digits, their labels, and their normalisation; every pixel becomes a square of pixels."""
    found = load_digits()
    factor = setting.size // 8
    images = torch.tensor(found.images[:SAMPLES] / 16, dtype=torch.float32)
    images = images.repeat_interleave(factor, 1).repeat_interleave(factor, 2)
    mean, deviation = images.mean(), images.std()
    images = ((images - mean) / deviation)[:, None].repeat(1, setting.channels, 1, 1)
    known = [mean.item()] * setting.channels, [deviation.item()] * setting.channels
    return images, torch.tensor(found.target[:SAMPLES]), known


def memorised(setting: Setting, method: MethodConfig) -> float:
    """Accuracy of the backbone in evaluation mode: the first over 99 % that it has, every four steps, or the last.

    Running statistics follow fast (momentum 0.3), as there are few steps.
    """
    torch.manual_seed(0)
    images, labels, normalisation = digits(setting)
    backbone = build(setting.name, 10, setting.channels, images.shape[2:])
    for module in backbone.net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.3
    engine = Engine(
        backbone, method, setting.modules, input_shape=images.shape[1:], cuts=setting.cuts, normalisation=normalisation,
        weight_decay=0.0,
    )  # fmt: skip
    top1 = 0.0
    for step in range(1, setting.steps + 1):
        engine.learning_rate = setting.learning_rate * min(1.0, step / 8) * setting.fall**step
        drawn = torch.randperm(SAMPLES)[: setting.batch]
        engine.step(images[drawn], labels[drawn])
        if step % 4 == 0:
            top1 = engine.evaluate([(images, labels)]).top1
            if top1 > 0.99:
                break
    return top1


SLOW = "mlaan-stage-twins"


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.long if n == SLOW else ()) for n in VARIANTS])
def test_resnet32(name):
    setting = RESNET32
    if name == SLOW:  # a twin on every block of a shared leap doubles its sums: it asks for small steps
        setting = replace(RESNET32, learning_rate=0.008, steps=260)
    assert memorised(setting, VARIANTS[name]) > 0.99


OFTEN = [("mlaan-fast", RESNET50)]
"""Of the large nets' tests, those of every run; all 22 take about an hour of one core."""
CASES = [
    pytest.param(name, setting, id=f"{name}-{setting.name}", marks=() if (name, setting) in OFTEN else pytest.mark.long)
    for name in BIG
    for setting in (RESNET50, VIT_S)
]


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("name", "setting"), CASES)
def test_large_nets(name, setting):
    if setting is VIT_S and name in ("infopro", "mlaan"):  # the last image comes late
        setting = replace(VIT_S, steps=300, fall=0.992)
    assert memorised(setting, VARIANTS[name]) > 0.99
