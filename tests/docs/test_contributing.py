"""CONTRIBUTING.md's code runs as it stands there, and its method has plain autograd's gradients."""

import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from exact.compare import gap
from exact.test_plain_autograd import plain_autograd
from mlaan import Engine
from mlaan.config import Config, MethodConfig, load
from mlaan.models import CifarResNet

PAGE = Path(__file__).parents[2] / "CONTRIBUTING.md"


@pytest.fixture
def names() -> Iterator[dict[str, Any]]:
    """What the page's code defines; the method it registers is forgotten again."""
    before = dict(MethodConfig.choices)
    defined: dict[str, Any] = {"__name__": "page"}
    torch.manual_seed(0)
    try:
        for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL):
            exec(compile(block, PAGE, "exec"), defined)
        yield defined
    finally:
        MethodConfig.choices.clear()
        MethodConfig.choices.update(before)


def test_the_code_trains(names):
    assert names["engine"].loss_names == ("0.local", "1.local", "2.classifier")
    assert names["result"].losses.isfinite().all()
    images, labels = torch.randn(8, 3, 32, 32), torch.randint(10, (8,))
    first = names["engine"].step(images, labels).losses
    for _ in range(10):
        last = names["engine"].step(images, labels).losses
    assert (last < first).all()


def test_settings_know_the_method(names):
    config = load(Config, None, [("method.name", "backlink"), ("method.reach", "3")])
    assert config.method == names["BackLink"](reach=3)


@pytest.mark.parametrize("reach", [1, 2, 4])
def test_the_method_has_plain_autograds_gradients(names, reach):
    torch.manual_seed(0)
    engine = Engine(CifarResNet(20).double(), names["BackLink"](reach), 4, input_shape=(3, 8, 8))
    assert [loss.reach for loss in engine.supervision.losses] == [reach] * 4
    memo: dict[int, Any] = {}
    parts, losses = copy.deepcopy((engine.partition.modules(engine.backbone), engine.supervision.losses), memo)
    images, labels = torch.randn(4, 3, 8, 8, dtype=torch.float64), torch.randint(10, (4,))
    engine.gradients(images, labels)
    plain_autograd(parts, losses, images, labels)
    for part in (engine.backbone.net, engine.heads):
        for name, parameter in part.named_parameters():
            assert gap(parameter.grad, memo[id(parameter)].grad) < 1e-9, name
