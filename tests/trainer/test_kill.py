"""`kill -9` at any moment, then --resume: the same bits as in one go, with every way of loading images."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from data.imagenet_folder import make_folder
from trainer.tiny import PICTURES

ROOT = Path(__file__).parents[2]
BACKENDS = ("torchvision", "packed", "memory", "synthetic", "dali")
FLAGS = PICTURES | {
    "data.classes": "4",
    "data.batch": "8",
    "data.size": "32",
    "run.checkpoint_minutes": "0.003",
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """A folder of images, with bad ones among them, checked, and the same packed."""
    from mlaan.cli import main

    root = tmp_path_factory.mktemp("images")
    make_folder(root / "folder", classes=4, train=96, val=12)
    assert main(["data", "check", str(root / "folder"), "--workers", "1"]) == 0
    assert main(["data", "pack", str(root / "folder"), str(root / "packed"), "--size", "48", "--workers", "1"]) == 0
    return {"packed": root / "packed"} | dict.fromkeys(("torchvision", "memory", "synthetic", "dali"), root / "folder")


def kill(folders: dict[str, Path], folder: Path, backend: str, workers: int, moments: int) -> dict:
    if backend == "dali":
        pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    settings = FLAGS | {"data.backend": backend, "data.root": str(folders[backend]), "data.workers": str(workers)}
    if backend == "synthetic":
        settings |= {"train.epochs": "1", "data.batch": "64", "data.classes": "2"}
    words = [word for key, value in settings.items() for word in (f"--{key}", value)]
    asked = json.dumps({"flags": words, "folder": str(folder), "moments": moments, "seed": workers})
    paths = os.pathsep.join([str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "trainer" / "killing.py"), asked],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def require(found: dict, moments: int) -> None:
    assert found["equal"] == [True] * moments, found
    assert found["forgotten_equal"] is not True, "a run whose loader starts anew should end elsewhere"


@pytest.mark.parametrize(("backend", "workers"), [("torchvision", 2), ("packed", 0), ("memory", 0), ("dali", 1)])
def test_a_killed_run_ends_with_the_same_bits(folders, tmp_path, backend, workers):
    require(kill(folders, tmp_path, backend, workers, 2), 2)


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("backend", BACKENDS)
def test_twenty_killed_runs_end_with_the_same_bits(folders, tmp_path, backend, workers):
    found = kill(folders, tmp_path, backend, workers, 20)
    require(found, 20)
    assert found["forgotten_equal"] is False, "no moment fell into the middle: nothing was shown of the loader's state"
    assert sum(0 < step < found["last"] for step in found["steps"]) >= 5, found["steps"]
