"""docs/backbones.md: its code runs as printed, and its names are those that there are."""

import re
from pathlib import Path

import torch

from mlaan.cli import main
from mlaan.models import BACKBONES, as_backbone
from trainer.tiny import SETTINGS

PAGE = (Path(__file__).parents[2] / "docs/backbones.md").read_text(encoding="utf-8")
MY_MODEL, VIEW = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def test_the_files_command_runs(tmp_path, monkeypatch):
    (tmp_path / "my_model.py").write_text(MY_MODEL)
    monkeypatch.chdir(tmp_path)
    [command] = re.findall(r"^mlaan (train .*)$", PAGE, re.MULTILINE)
    assert " --model my_model.py:make " in command
    settings = {**SETTINGS, "train.epochs": "1", "run.folder": "run"}
    for key in ("partition.modules", "method.preset"):
        del settings[key]
    monkeypatch.setattr("mlaan.report.draw", lambda folder: None)
    assert main([*command.split(), *(f"--{key}={value}" for key, value in settings.items())]) == 0
    assert main(["export", "run", "--format", "safetensors"]) == 0
    assert (tmp_path / "run" / "export" / "model.safetensors").exists()


def test_the_view_made_by_hand(capsys):
    torch.manual_seed(0)
    defined: dict = {}
    exec(compile(VIEW, "page", "exec"), defined)
    backbone, engine = defined["backbone"], defined["engine"]
    assert capsys.readouterr().out
    assert [block.label for block in backbone.blocks] == ["1.0", "2.0", "2.1", "2.2"]
    assert as_backbone(backbone, (3, 64, 64)) is backbone
    assert engine.step(torch.randn(4, 3, 64, 64), torch.tensor([0, 1, 2, 3])).losses.isfinite().all()


def test_the_names_are_those_that_there_are():
    table = PAGE.partition("## By name")[2].partition("\n## ")[0]
    named = set(re.findall(r"`(\w+)`", table.replace("`_bn`", "")))
    named |= {f"{name}_bn" for name in named if re.fullmatch(r"vgg\d+", name)}
    assert named == set(BACKBONES)
