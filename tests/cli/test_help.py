"""Help teaches: examples first, then every setting with its default."""

import pytest

from mlaan.cli import main
from mlaan.cli.settings import keys


def shown(capsys, *words: str) -> str:
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("words", [[], ["--help"]])
def test_the_first_help_names_every_command(capsys, words):
    text = shown(capsys, *words)
    for command in ("train", "eval", "plan", "report", "table", "probe", "export", "doctor"):
        assert f"\n    {command} " in text
    assert text.index("start here") < text.index("commands:")


def test_train_help_has_examples_first_and_every_setting_with_its_default(capsys):
    text = shown(capsys, "train", "--help")
    assert text.index("mlaan train --resume RUN") < text.index("--train.epochs 20")
    for key in keys():
        assert f"  --{key} " in text
    for words in ("passes over the training images", "[optim]", "with --data.name synthetic", '--run.folder ""'):
        assert words in text


@pytest.mark.parametrize("command", ["eval", "plan", "report", "table", "probe", "export", "doctor"])
def test_every_command_has_help_with_an_example(capsys, command):
    text = shown(capsys, command, "--help")
    assert f"  mlaan {command}" in text
