"""docs/adding_a_method.md's code runs as it stands there, and its method has plain autograd's gradients."""

import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from exact.compare import gap
from mlaan import Engine
from mlaan.cli.settings import load_config
from mlaan.config import MethodConfig
from mlaan.models import CifarResNet

PAGE = Path(__file__).parents[2] / "docs" / "adding_a_method.md"


@pytest.fixture
def names() -> Iterator[dict[str, Any]]:
    """What the page's code defines; the method it registers is forgotten again, one that a reader put in is not."""
    before = dict(MethodConfig.choices)
    MethodConfig.choices.pop("companion", None)
    defined: dict[str, Any] = {"__name__": "page"}
    torch.manual_seed(0)
    try:
        for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL):
            exec(compile(block, PAGE, "exec"), defined)
        yield defined
    finally:
        MethodConfig.choices.clear()
        MethodConfig.choices.update(before)


def test_the_method_is_as_long_as_the_page_says():
    first = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)[0]
    assert 55 <= len(first.splitlines()) <= 65


def test_a_checkout_that_has_the_method_already_does_as_well(monkeypatch, request):
    monkeypatch.setitem(MethodConfig.choices, "companion", MethodConfig)
    names = request.getfixturevalue("names")
    assert MethodConfig.choices["companion"] is names["Companion"]


def test_the_code_trains(names):
    assert names["engine"].loss_names == ("0.companion", "1.companion", "2.companion", "3.classifier")
    images, labels = torch.randn(8, 3, 32, 32), torch.randint(10, (8,))
    first = names["engine"].step(images, labels).losses
    for _ in range(15):
        last = names["engine"].step(images, labels).losses
    assert (last < first).all()


def test_settings_know_the_method(names):
    config = load_config(None, [("method.name", "companion"), ("method.reach", "3")])
    assert config.method == names["Companion"](reach=3)


@pytest.mark.parametrize("reach", [0, 1, 2])
def test_the_method_has_plain_autograds_gradients(names, reach):
    torch.manual_seed(0)
    engine = Engine(CifarResNet(20).double(), names["Companion"](reach, 0.3), 4, input_shape=(3, 8, 8))
    memo: dict[int, Any] = {}
    modules, losses = copy.deepcopy((engine.partition.modules(engine.backbone), engine.supervision.losses), memo)
    images, labels = torch.randn(4, 3, 8, 8, dtype=torch.float64), torch.randint(10, (4,))
    engine.gradients(images, labels)

    for i, loss in enumerate(losses):
        h = images
        for m in range(i + 1):
            h = modules[m](h.detach() if reach and m == i - reach + 1 else h)
        if i == 3:
            F.cross_entropy(loss.head(h), labels).backward()
            continue
        scores = loss.head.classifier.linear(loss.head.norm(h.mean((2, 3))))
        terms = [
            max(1 - (1 if c == y else -1) * row[c], 0 * row[c]) ** 2
            for row, y in zip(scores, labels.tolist(), strict=True)
            for c in range(10)
        ]
        (0.3 * sum(terms) / len(terms)).backward()
    for part in (engine.backbone.net, engine.heads):
        for name, parameter in part.named_parameters():
            assert gap(parameter.grad, memo[id(parameter)].grad) < 1e-9, name
