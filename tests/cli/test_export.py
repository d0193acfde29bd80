"""`mlaan export`: a run's backbone in files that others read."""

import json
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from mlaan import checkpoint
from mlaan.cli import main
from mlaan.models import CifarResNet
from trainer.tiny import one_thread, start

__all__ = ["one_thread"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert start(folder, train__epochs="2") == 0
    return folder


def error(capsys, *words: str) -> str:
    capsys.readouterr()
    assert main(["export", *words]) == 2
    line = capsys.readouterr().err
    assert line.startswith("mlaan: ")
    assert line.count("\n") == 1
    return line


def test_a_run_is_written_beside_its_checkpoint(run, capsys):
    capsys.readouterr()
    assert main(["export", str(run)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert f"resnet20, 3 classes, images of 1x8x8, from {run / 'last.pt'} after epoch 2" in out
    for name in ("model.safetensors", "model.pt2"):
        assert f"{run / 'export' / name}  1 MiB, read again: logits differ by at most" in out
    saved = checkpoint.load(run / "last.pt").engine["backbone"]
    net = CifarResNet(20, 3, 1).eval()
    net.load_state_dict(load_file(run / "export" / "model.safetensors"), strict=True)
    assert all(torch.equal(value, saved[key]) for key, value in net.state_dict().items())
    images = torch.randn(3, 1, 8, 8)
    program = torch.export.load(run / "export" / "model.pt2").module()
    torch.testing.assert_close(program(images), net(images))


def test_facts_that_a_user_needs(run, tmp_path):
    assert main(["export", str(run / "best.pt"), "--out", str(tmp_path), "--format", "safetensors"]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        facts = file.metadata()
    assert (facts["model"], facts["data"], facts["method"]) == ("resnet20", "synthetic", "mlaan")
    assert json.loads(facts["image_shape"]) == [1, 8, 8]
    [mean], [std] = json.loads(facts["mean"]), json.loads(facts["std"])
    assert 0 < mean < 1
    assert 0 < std < 1


def test_it_starts_another_run(run, tmp_path, capsys):
    assert main(["export", str(run), "--out", str(tmp_path), "--format", "safetensors"]) == 0
    weights = str(tmp_path / "model.safetensors")
    capsys.readouterr()
    assert start(tmp_path / "next", train__epochs="1", model__weights=weights, data__classes="4") == 0
    assert "has 3 classes, the data have 4: the last layer, fc, starts afresh" in capsys.readouterr().err


def test_what_is_wrong(run, tmp_path, capsys):
    assert "no checkpoint" in error(capsys, str(tmp_path / "none.pt"))
    assert "holds no run" in error(capsys, str(tmp_path))
    assert "choose from" in error(capsys, str(run), "--format", "onnx")
    assert "only data.* and train.device" in error(capsys, str(run), "--model.name", "resnet32")
    said = error(capsys, str(run), "--data.channels", "3")
    assert f"{run / 'last.pt'} does not fit resnet20 for these data" in said
    assert "conv1.weight" in said
    shutil.copy(run / "last.pt", tmp_path / "cut.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "cut.pt").read_bytes()[:-100])
    assert "cut short" in error(capsys, str(tmp_path / "cut.pt"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut.pt"]


def test_data_that_are_not_here_are_said(run, tmp_path, capsys, monkeypatch):
    """What the images' mean is, only they tell; the weights are written all the same."""
    from mlaan import data
    from mlaan.errors import UserError

    def missing(*_, **__):
        raise UserError("data.root = 'none' is not a folder")

    monkeypatch.setattr(data, "loaders", missing)
    capsys.readouterr()
    assert main(["export", str(run), "--out", str(tmp_path), "--format", "safetensors"]) == 0
    err = capsys.readouterr().err
    assert err == "mlaan: the files will not say mean and deviation of the images: data.root = 'none' is not a folder\n"
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert "mean" not in file.metadata()


def test_help_has_an_example(capsys):
    with pytest.raises(SystemExit):
        main(["export", "--help"])
    assert "\n  mlaan export RUN " in capsys.readouterr().out
