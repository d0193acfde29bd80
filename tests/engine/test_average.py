"""The moving average of the weights, and what it is tested and exported as."""

import copy

import pytest
import torch

from mlaan import Engine, checkpoint
from mlaan.cli import main
from mlaan.errors import UserError
from mlaan.models import BACKBONES
from trainer.test_trainer import stop_at
from trainer.tiny import STEPS, final_state, one_thread, resume, same, start

__all__ = ["one_thread"]
SHAPE = (3, 8, 8)


def make(average: float = 0.5, **settings) -> Engine:
    torch.manual_seed(0)
    backbone = BACKBONES["resnet20"](7, 3)
    return Engine(backbone, preset="light", modules=3, input_shape=SHAPE, average=average, **settings)


def batches(count: int, seed: int = 1):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        yield torch.randn(12, *SHAPE, generator=generator), torch.randint(7, (12,), generator=generator)


@pytest.mark.parametrize("decay", [0.3, 0.99])
@pytest.mark.parametrize("weights", ["float32", "bfloat16"])
def test_it_is_the_recursion_of_its_definition(decay, weights):
    """In float64 by hand, over weights (bfloat16's masters) and running statistics; whole numbers are the newest."""
    settings = {"weights": "bfloat16", "precision": "bfloat16"} if weights == "bfloat16" else {}
    engine = make(decay, **settings)
    wanted = {name: value.double() for name, value in engine.state_dict()["backbone"].items()}
    for t, batch in enumerate(batches(6), 1):
        engine.step(*batch)
        d = min(decay, (1 + t) / (10 + t))
        now = engine.state_dict()["backbone"]
        for name, value in wanted.items():
            wanted[name] = d * value + (1 - d) * now[name].double() if now[name].is_floating_point() else now[name]
    assert engine.average is not None
    found = engine.average.averages
    for name, value in wanted.items():
        assert found[name].dtype in (torch.float32, torch.int64)
        torch.testing.assert_close(found[name].double(), value.double(), rtol=1e-5, atol=1e-6)


def test_a_step_without_update_does_not_move_it():
    engine = make()
    assert engine.average is not None
    before = copy.deepcopy(engine.average.state_dict())
    engine.gradients(*next(batches(1)))
    assert engine.average.updates == before["updates"] == 0
    assert all(torch.equal(value, before["weights"][name]) for name, value in engine.average.averages.items())


def test_it_moves_once_for_each_step_however_many_parts_that_has():
    engine = make(0.9, accumulate=2)
    assert engine.average is not None
    for steps, batch in enumerate(batches(3), 1):
        engine.step(*batch)
        assert engine.average.updates == steps


def test_training_is_the_same_with_it_and_without():
    with_it, without = make(0.9), make(0.0)
    for batch in batches(3):
        with_it.step(*batch)
        without.step(*batch)
    mine, wanted = with_it.state_dict()["backbone"], without.state_dict()["backbone"]
    assert all(torch.equal(value, wanted[name]) for name, value in mine.items())


def test_a_test_sees_the_average_and_leaves_the_weights():
    engine, test = make(0.9), list(batches(2, 5))
    for batch in batches(4):
        engine.step(*batch)
    before = copy.deepcopy(engine.backbone.net.state_dict())
    found = engine.evaluate(test)
    assert all(torch.equal(value, before[name]) for name, value in engine.backbone.net.state_dict().items())
    assert engine.backbone.net.training
    plain = make(0.0)
    plain.backbone.net.load_state_dict(before)
    of_weights = plain.evaluate(test)
    assert engine.average is not None
    plain.backbone.net.load_state_dict(engine.average.weights())
    assert found == plain.evaluate(test) != of_weights
    engine.take_average()
    assert engine.evaluate(test) == found


def test_the_state_goes_on_bit_for_bit_and_must_fit():
    engine = make(0.9)
    every = list(batches(6))
    for batch in every[:3]:
        engine.step(*batch)
    saved = copy.deepcopy(engine.state_dict())
    again = make(0.9)
    again.load_state_dict(saved)
    for batch in every[3:]:
        engine.step(*batch)
        again.step(*batch)
    mine, wanted = again.state_dict()["average"], engine.state_dict()["average"]
    assert mine["updates"] == wanted["updates"] == 6
    assert all(torch.equal(value, wanted["weights"][name]) for name, value in mine["weights"].items())
    with pytest.raises(UserError, match=r"train\.average"):
        make(0.0).load_state_dict(saved)
    with pytest.raises(UserError, match=r"train\.average"):
        again.load_state_dict(make(0.0).state_dict())


@pytest.mark.parametrize("weights", ["float32", "bfloat16"])
def test_a_plan_counts_its_bytes(weights):
    def planned(average: float) -> tuple[Engine, dict]:
        net = BACKBONES["resnet20"](10, 3)
        engine = Engine(net, preset="light", modules=2, precision="bfloat16", weights=weights, average=average)
        return engine, engine.describe(8)["plans"]["this plan"]

    (_, without), (engine, found) = planned(0.0), planned(0.9)
    held = sum(value.numel() * value.element_size() for value in engine.average.averages.values())
    assert found["at_peak"]["average"] == held == found["peak_bytes"] - without["peak_bytes"]


def test_runs_test_report_and_export_it(tmp_path, monkeypatch, capsys):
    settings = {"train__average": "0.9", "data__classes": "7"}
    assert start(tmp_path / "run", **settings) == 0
    with monkeypatch.context() as patch:
        stop_at(patch, STEPS + 2)
        assert start(tmp_path / "other", **settings) == 143
    assert resume(tmp_path / "other") == 0
    assert same(final_state(tmp_path / "other"), final_state(tmp_path / "run"))
    capsys.readouterr()
    assert main(["eval", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().out
    assert "their average; in float32" in said
    assert "top-5" in said
    assert main(["export", str(tmp_path / "run"), "--format", "safetensors"]) == 0
    assert "the average of the weights" in capsys.readouterr().out
    from safetensors.torch import load_file

    saved = checkpoint.load(tmp_path / "run" / "last.pt").engine
    exported = load_file(tmp_path / "run" / "export" / "model.safetensors")
    assert all(torch.equal(value, saved["average"]["weights"][name]) for name, value in exported.items())
    assert not torch.equal(exported["conv1.weight"], saved["backbone"]["conv1.weight"])
    assert main(["probe", str(tmp_path / "run"), "--images", "20"]) == 0
