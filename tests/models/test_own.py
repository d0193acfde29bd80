"""`FILE.py:FUNCTION`: a user's own net, what its function is given, and one line for whatever is wrong."""

import sys
from pathlib import Path

import pytest
import torch

from mlaan import UserError
from mlaan.cli import main
from mlaan.models import build
from trainer.tiny import SETTINGS

PARTS = """
from torch import nn

def convolution(a, b):
    return nn.Sequential(nn.Conv2d(a, b, 3, 1, 1), nn.BatchNorm2d(b), nn.ReLU())

def head(channels, classes):
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Linear(channels, classes))
"""
MAKE = """
import mlaan
from parts import convolution, head
from torch import nn

def make({arguments}):
    {before}
    return nn.Sequential(convolution({channels}, 4), convolution(4, 4), convolution(4, 4), head(4, {classes}))
"""


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "parts.py").write_text(PARTS)
    return tmp_path


def write(arguments: str, channels: str = "in_channels", classes: str = "num_classes", before: str = "pass") -> None:
    code = MAKE.format(arguments=arguments, channels=channels, classes=classes, before=before)
    Path("net.py").write_text(code)


@pytest.fixture(autouse=True)
def forget():
    yield
    for name in ("parts", "mlaan_own_net"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("arguments", "channels", "before"),
    [
        ("num_classes, in_channels", "in_channels", "pass"),
        ("*, in_channels, num_classes", "in_channels", "pass"),
        ("in_channels, num_classes, width=4", "in_channels", "pass"),
        ("image_shape, num_classes", "image_shape[0]", "assert image_shape == (2, 12, 10)"),
        ("num_classes, image_size", "2", "assert image_size == (12, 10)"),
        ("**options", "2", "num_classes = options['num_classes']; assert len(options) == 1"),
    ],
)
def test_the_function_is_given_what_it_takes(folder, arguments, channels, before):
    write(arguments, channels, before=before)
    backbone = build("net.py:make", 6, 2, (12, 10))
    assert backbone.num_classes == 6
    assert len(backbone.blocks) == 2
    assert backbone(torch.randn(2, 2, 12, 10)).shape == (2, 6)
    assert str(folder) not in sys.path


def test_a_backbone_with_stages_and_a_name(folder):
    Path("net.py").write_text(
        PARTS + "import mlaan\n"
        "def make(num_classes):\n"
        "    net = nn.Sequential(convolution(3, 4), convolution(4, 4), convolution(4, 4), head(4, num_classes))\n"
        "    return mlaan.Backbone(net, net[0], [net[1], net[2]], net[3], stages=[1, 2], name='two')\n"
    )
    backbone = build(f"{folder}/net.py:make", 10, 3, (16, 16))
    assert (backbone.name, backbone.blocks[-1].label) == ("two", "2.0")


def test_on_the_meta_device(folder):
    write("num_classes, in_channels")
    with torch.device("meta"):
        assert all(p.is_meta for p in build("net.py:make", 10, 3, (16, 16)).net.parameters())


@pytest.mark.parametrize(
    ("name", "arguments", "before", "says"),
    [
        ("none.py:make", "", "pass", r"no file .*none.py: run this from the folder it was trained in, or give"),
        ("net.py", "", "pass", r"'net.py' names no function: write FILE.py:FUNCTION"),
        ("net.py:build", "num_classes, in_channels", "pass", r"has no function 'build', but convolution, head, make"),
        ("net.py:make", "num_classes, in_channels, depth", "pass", r"must have depth: it is given only num_classes"),
        ("net.py:make", "num_classes, in_channels", "num_classes += 1", r"a net of 11 classes, the data have 10"),
        ("net.py:make", "num_classes, in_channels", "1 / 0", r"'net.py:make': ZeroDivisionError in line 7: division"),
        ("net.py:make", "num_classes in_channels", "pass", r"SyntaxError: .*net.py, line 6"),
        ("net.py:make", "num_classes", "return 3", r"gave a int: return an nn.Module or a mlaan.Backbone"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_one_line(folder, name, arguments, before, says):
    write(arguments, before=before)
    with pytest.raises(UserError, match=says) as caught:
        build(name, 10, 3, (16, 16))
    assert "\n" not in str(caught.value)


def test_the_short_form_on_the_command_line(folder, capsys):
    write("num_classes, in_channels")
    settings = [f"--{key}={value}" for key, value in SETTINGS.items()]
    assert main(["plan", *settings, "--model", "net.py:make", "--json"]) == 0
    assert '"modules"' in capsys.readouterr().out
