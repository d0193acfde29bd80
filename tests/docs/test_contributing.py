"""CONTRIBUTING.md's code runs as it stands there."""

import re
from pathlib import Path
from typing import Any

import torch

PAGE = Path(__file__).parents[2] / "CONTRIBUTING.md"


def test_the_backbone_trains():
    names: dict[str, Any] = {"__name__": "page"}
    torch.manual_seed(0)
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL):
        exec(compile(block, PAGE, "exec"), names)
    assert names["engine"].loss_names == ("0.local", "1.local", "2.classifier")
    assert names["result"].losses.isfinite().all()
    images, labels = torch.randn(8, 3, 32, 32), torch.randint(10, (8,))
    first = names["engine"].step(images, labels).losses
    for _ in range(10):
        last = names["engine"].step(images, labels).losses
    assert (last < first).all()
