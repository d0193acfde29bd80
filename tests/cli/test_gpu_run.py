"""A run on a GPU: started, stopped, resumed, tested."""

import json
import signal

import pytest
import torch

from mlaan import checkpoint
from mlaan.cli import main
from mlaan.engine import Engine
from trainer.tiny import STEPS, resume, start

pytestmark = pytest.mark.gpu


def test_a_run_on_a_gpu_stops_and_goes_on(tmp_path, monkeypatch, capsys):
    folder, real, steps = tmp_path / "run", Engine.step, []

    def interrupted(self, images, labels):
        steps.append(1)
        if len(steps) == STEPS + 2:
            signal.raise_signal(signal.SIGTERM)
        return real(self, images, labels)

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "step", interrupted)
        assert start(folder, train__device="cuda") == 143
    saved = checkpoint.load(folder / "last.pt")
    assert set(saved.random) == {"cpu", "cuda"}
    assert resume(folder) == 0
    env = json.loads((folder / "env.json").read_text())
    assert env["device"] == "cuda:0"
    assert env["gpus"][0] == torch.cuda.get_device_name(0)
    last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    assert (last["epoch"], last["step"]) == (3, 3 * STEPS)
    assert 0 < last["memory_bytes"] < 2**30
    capsys.readouterr()
    assert main(["eval", str(folder), "--train.device", "cpu"]) == 0
    assert f"top-1   {100 * last['test_top1']:.1f} %" in capsys.readouterr().out
