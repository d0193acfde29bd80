"""A nan in one module: the step that made it is found and kept, and the run stops or goes on without it."""

import errno
import os
from pathlib import Path

import pytest
import torch

from mlaan import checkpoint, signed
from mlaan.build import build
from mlaan.cli import main
from mlaan.engine import Engine
from mlaan.observe.finite import first_bad_loss, first_bad_weight
from mlaan.observe.incident import Incident
from trainer.poisoned import CULPRIT, hand_trained, write_net
from trainer.test_trainer import stop_at
from trainer.tiny import STEPS, config, final_state, one_thread, resume, same, start

__all__ = ["one_thread"]


def progress(folder: Path) -> dict:
    return checkpoint.load(folder / "last.pt").progress


def test_a_run_stops_at_a_nan_and_replay_names_the_layer_that_made_it(tmp_path, capsys):
    name, bad = write_net(tmp_path, config())
    folder = tmp_path / "run"
    assert start(folder, model__name=name) == 2
    step = bad[0] + 1
    file = folder / "incidents" / f"epoch-1-step-{step}.pt"
    said = capsys.readouterr().err
    assert f"of module 1 is nan after step {step}" in said
    assert f"mlaan replay {file}" in said
    assert progress(folder)["step"] <= bad[0], "a checkpoint holds numbers of after the nan"
    assert main(["replay", str(file)]) == 0
    said = capsys.readouterr().out
    assert f"first   layer {CULPRIT} (Poisoned) in Forward(1)" in said
    assert "its weights 0." in said, "the weights are finite and should be said to be"
    rows = {line.strip().split("  ")[0]: line.split() for line in said.splitlines() if "(" in line}
    assert rows["Forward(0)"][-2] == "0"
    assert rows["Forward(1)"][-2] != "0"


def test_a_run_that_rolls_back_is_one_that_never_saw_those_batches(tmp_path, capsys):
    name, bad = write_net(tmp_path, config())
    folder = tmp_path / "run"
    assert start(folder, model__name=name, run__on_nan="rollback") == 0
    assert progress(folder)["step"] == 3 * (STEPS - 1)
    assert len(list((folder / "incidents").iterdir())) == 3
    mine = list(checkpoint.load(folder / "last.pt").engine["backbone"].values())
    wanted = hand_trained(config(model__name=name), bad)
    assert all(torch.equal(a, b) for a, b in zip(mine, wanted, strict=True))


@pytest.mark.parametrize("step", [1, STEPS - 1, STEPS, 2 * STEPS - 2])
def test_a_rolled_back_run_that_is_stopped_goes_on_as_if_it_had_not_been(tmp_path, monkeypatch, step):
    name, _ = write_net(tmp_path, config())
    settings = {"model__name": name, "run__on_nan": "rollback", "train__epochs": "2"}
    assert start(tmp_path / "whole", **settings) == 0
    with monkeypatch.context() as patch:
        stop_at(patch, step)
        assert start(tmp_path / "run", **settings) == 143
    assert resume(tmp_path / "run") == 0
    assert same(final_state(tmp_path / "run"), final_state(tmp_path / "whole"))


def test_a_run_whose_every_step_is_bad_stops_in_spite_of_rollback(tmp_path, capsys):
    name, _ = write_net(tmp_path, config(), always=True)
    assert start(tmp_path / "run", model__name=name, run__on_nan="rollback") == 2
    assert "it is the 4th of this epoch" in capsys.readouterr().err
    assert progress(tmp_path / "run")["step"] == 0
    kept = sorted(path.name for path in (tmp_path / "run" / "incidents").iterdir())
    assert kept == ["epoch-1-step-1-1.pt", "epoch-1-step-1-2.pt", "epoch-1-step-1-3.pt", "epoch-1-step-1.pt"]


@pytest.mark.parametrize("what", ["file", "folder"])
def test_a_full_disk_that_cannot_keep_the_step_does_not_end_a_run_that_rolls_back(tmp_path, monkeypatch, capsys, what):
    name, bad = write_net(tmp_path, config())
    real_save, real_mkdir = torch.save, Path.mkdir

    def full(is_full: bool) -> None:
        if is_full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def save(content, file):
        full(content.get("kind") == "incident")
        real_save(content, file)

    def mkdir(self, *arguments, **options):
        full(self.name == "incidents")
        real_mkdir(self, *arguments, **options)

    if what == "file":
        monkeypatch.setattr(signed.torch, "save", save)
    else:
        monkeypatch.setattr(Path, "mkdir", mkdir)
    assert start(tmp_path / "run", model__name=name, run__on_nan="rollback", train__epochs="1") == 0
    said = capsys.readouterr().out
    assert f"after step {bad[0] + 1}, in epoch 1: the step could not be kept (" in said
    assert "No space left on device" in said
    assert progress(tmp_path / "run")["step"] == STEPS - 1
    assert not list((tmp_path / "run").glob("incidents/*"))


def test_a_nan_that_does_not_come_again_is_not_blamed_on_a_step(tmp_path, monkeypatch, capsys):
    real, calls = Engine.step, []

    def once(self, images, labels):
        result = real(self, images, labels)
        calls.append(1)
        if len(calls) == 2:
            result.losses.fill_(torch.nan)
        return result

    monkeypatch.setattr(Engine, "step", once)
    assert start(tmp_path / "run") == 0
    assert f"every step up to {STEPS} was finite this time" in capsys.readouterr().out
    assert not (tmp_path / "run" / "incidents").exists()
    monkeypatch.setattr(Engine, "step", real)
    assert start(tmp_path / "whole") == 0
    assert same(final_state(tmp_path / "run"), final_state(tmp_path / "whole"))


def test_no_checkpoint_is_written_of_weights_that_are_not_finite(tmp_path, monkeypatch):
    """The last step of an epoch may leave bad weights and good losses."""
    real, calls = Engine.step, []

    def poison(self, images, labels):
        result = real(self, images, labels)
        calls.append(1)
        if len(calls) >= STEPS:
            next(self.backbone.net.parameters()).data[0] = torch.inf
        return result

    monkeypatch.setattr(Engine, "step", poison)
    assert start(tmp_path / "run") == 2
    found = [checkpoint.load(path) for path in (tmp_path / "run").rglob("*.pt") if path.parent.name != "incidents"]
    assert found
    for saved in found:
        assert all(value.isfinite().all() for value in saved.engine["backbone"].values())


@pytest.mark.parametrize("part", ["weight", "buffer", "head", "momentum"])
def test_what_is_not_finite_is_named(part):
    engine = build(config()).engine
    engine.step(*next(iter(build(config()).train_batches)))
    assert first_bad_weight(engine) == ""
    state = engine.state_dict()
    name, value = {
        "weight": ("backbone.layer1.0.conv1.weight", state["backbone"]["layer1.0.conv1.weight"]),
        "buffer": ("backbone.layer1.0.bn1.running_var", state["backbone"]["layer1.0.bn1.running_var"]),
        "head": next((f"heads.{name}", value) for name, value in state["heads"].items()),
        "momentum": _first(state["optimizer"], "optimizer"),
    }[part]
    value.view(-1)[0] = torch.nan
    assert first_bad_weight(engine) == f"{name} has 1 of {value.numel():,} values that are not finite"
    losses = torch.zeros(len(engine.loss_names))
    assert first_bad_loss(engine, losses) == ""
    losses[1] = -torch.inf
    assert first_bad_loss(engine, losses) == f"the loss {engine.loss_names[1]} of module 0 is -inf"


def _first(state, name):
    for key, value in state.items():
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            return f"{name}.{key}", value
        if isinstance(value, dict):
            return _first(value, f"{name}.{key}")
    raise AssertionError(f"{name} has no tensor")


@pytest.mark.parametrize("words", [["--train.seed", "1"], ["--data.root", "x"]])
def test_a_kept_step_cannot_be_changed(tmp_path, capsys, words):
    name, bad = write_net(tmp_path, config())
    start(tmp_path / "run", model__name=name)
    capsys.readouterr()
    assert main(["replay", str(tmp_path / "run" / "incidents" / f"epoch-1-step-{bad[0] + 1}.pt"), *words]) == 2
    assert words[0] in capsys.readouterr().err


def test_a_checkpoint_is_no_incident(tmp_path, capsys):
    assert start(tmp_path / "run", train__epochs="1") == 0
    assert main(["replay", str(tmp_path / "run" / "last.pt")]) == 2
    assert "is no incident" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"no file|cannot read"):
        Incident.load(tmp_path / "missing.pt")
