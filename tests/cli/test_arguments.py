"""From words to a command, its options and overrides; and what is said to wrong words."""

import pytest

from mlaan.cli import main
from mlaan.cli.arguments import parse
from trainer.tiny import flags


def test_both_forms_of_a_setting_and_values_that_look_odd():
    words = ["train", "--a.b", "1", "--config", "x.toml", "--c.d=x=y", "--e.f", "-3", "--g.h="]
    command, arguments, overrides = parse(words)
    assert overrides == [("a.b", "1"), ("c.d", "x=y"), ("e.f", "-3"), ("g.h", "")]
    assert (arguments.config, arguments.resume) == ("x.toml", None)
    assert command.__module__ == "mlaan.cli.train"


def fails(capsys, *words: str) -> str:
    """The one line that a wrong command line gets."""
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("mlaan: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err
    return err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["train", "--epochs", "3"], "did you mean '--train.epochs'?"),
        (["train", "--learning-rate=3"], "did you mean '--optim.learning_rate'?"),
        (["train", "--train.epoch", "3"], "did you mean 'train.epochs'?"),
        (["train", "--train.epochs"], "--train.epochs has no value"),
        (["train", "--train.epochs", "--run.folder=x"], "--train.epochs has no value"),
        (["train", "--train.epochs", "many"], "train.epochs = 'many' must be an integer"),
        (["train", "--data.name", "digit"], "data.name = 'digit' must be 'digits'"),
        (["train", "--config", "none.toml"], "none.toml"),
        (["train", "more"], "unknown argument 'more'"),
        (["train", "--config"], "--config: expected one argument"),
        (["trian"], "invalid choice: 'trian'"),
        (["eval"], "RUN_OR_CHECKPOINT"),
        (["eval", "none.pt"], "no checkpoint none.pt"),
        (["report", "none"], "none is not a run folder"),
        (["doctor", "--train.epochs", "3"], "takes no settings"),
        (["train", "--resume", "none"], "none is not a run folder"),
        (["train", "--train.device", "gpu"], "train.device = 'gpu' must be auto, cpu, cuda or cuda:N"),
        (["train", "--train.device", "cuda:99"], "train.device = 'cuda:99'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_words_get_one_line_with_the_fix(capsys, words, says):
    assert says in fails(capsys, *words)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"partition__modules": "99"}, "partition.modules"),
        ({"method__reach": "0"}, "method.reach"),
        ({"data__batch": "1000"}, "data.batch"),
        ({"data__name": "fashion_mnist"}, "data."),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_settings_that_do_not_fit_leave_no_folder(capsys, tmp_path, changes, says):
    assert says in fails(capsys, "train", *flags(tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()
