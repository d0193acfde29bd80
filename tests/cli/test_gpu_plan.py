"""Settings that `mlaan plan --memory` finds, trained on a GPU that gives no more than that."""

import gc
import json
from unittest import mock

import pytest
import torch

from mlaan.cli import main

SIZE = {"data.size": "224", "data.batch": "192", "data.images": "384", "data.test_images": "64"}
"""Two steps of a batch for which 8 GiB are little: plain end-to-end training is predicted to need more."""


def plan_and_train(folder, device, limit, capsys, **changes):
    """ResNet-50 in bfloat16 as planned for a limit, two steps under it; returns the peak predicted, in bytes."""
    settings = {"data.name": "synthetic", "model.name": "resnet50", "method.preset": "light"} | SIZE | changes
    words = [word for key, value in settings.items() for word in (f"--{key}", value)]
    out = folder / "plan.toml"
    common = ["--train.device", device, "--train.precision", "bfloat16"]
    assert main(["plan", *words, *common, "--memory", limit, "--out", str(out), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["plans"][0]
    run = [
        "--memory.limit",
        limit,
        "--train.epochs",
        "1",
        "--run.folder",
        str(folder / "run"),
        "--run.tensorboard",
        "false",
    ]
    with mock.patch("mlaan.report.draw"):
        assert main(["train", "--config", str(out), *run]) == 0, capsys.readouterr().err
    last = json.loads((folder / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["step"] == 2
    return found["peak_bytes"]


@pytest.fixture
def whole_gpu():
    """All of the GPU's memory again after a test that was held to less."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.mark.gpu
def test_resnet50_as_planned_for_8_gib_trains_in_8_gib_and_takes_no_more_than_predicted(tmp_path, whole_gpu, capsys):
    predicted = plan_and_train(tmp_path, "cuda", "8GiB", capsys)
    assert torch.cuda.max_memory_reserved() <= 8 * 2**30
    assert torch.cuda.max_memory_allocated() <= predicted <= 8 * 2**30


def test_the_same_way_on_a_cpu_with_small_images(tmp_path, capsys):
    small = {
        "model.name": "resnet20",
        "data.size": "8",
        "data.batch": "8",
        "data.images": "16",
        "data.test_images": "8",
    }
    assert plan_and_train(tmp_path, "cpu", "20MiB", capsys, **small) <= 20 * 2**20
