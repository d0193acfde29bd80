"""docs/architecture.md and CONTRIBUTING.md say what is there."""

import re
from pathlib import Path

import pytest

from mlaan import MLAAN, Engine
from mlaan.models import CifarResNet

ROOT = Path(__file__).parents[2]
PAGES = ("docs/architecture.md", "CONTRIBUTING.md")


def test_the_plan_on_the_page_is_the_plan():
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    [shown] = re.findall(r"```text\n(.*?)```", page, re.DOTALL)
    plan = Engine(CifarResNet(20), MLAAN(preset="light", reach=2), 4).plan
    assert shown.split() == " ".join(str(task) for step in plan.steps for task in step.tasks).split()
    assert plan.graph.groups == ((1,), (1, 2), (1, 2), (2,))
    assert "{1}, {1, 2}, {1, 2}, {2}" in page


@pytest.mark.parametrize("page", PAGES)
def test_files_on_the_page_are_there(page):
    """Every name in backticks that ends like a file or folder of the sources."""
    text = re.sub(r"```.*?```", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL)
    named = re.findall(r"`(\w[\w./]*(?:\.py|\.md|\.cpp|\.cu|\.h|\.toml|\.txt|/))`", text)
    roots = [ROOT, ROOT / "engine/mlaan", ROOT / "engine/mlaan/learning", ROOT / "kernels", ROOT / "tests/exact"]
    roots += [ROOT / "kernels/mlaan_kernels", ROOT / "kernels/mlaan_kernels/sgd_update"]
    named = [name.replace("NAME", "sgd_update") for name in named if "backlink" not in name]
    assert len(named) > 5
    missing = [name for name in named if not any((root / name).exists() for root in roots)]
    assert not missing
