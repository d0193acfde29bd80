"""The commands, from a person's side."""

import io
import json
import re
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from mlaan import checkpoint
from mlaan.cli import main
from mlaan.run_folder import RunFolder
from trainer.tiny import STEPS, final_state, flags, one_thread, resume, same, start

__all__ = ["one_thread"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "run"
    torch.set_num_threads(1)
    assert main(["train", *flags(folder)]) == 0
    return folder


def in_a_process(folder: Path, sabotage: str, **changes: str) -> subprocess.CompletedProcess[str]:
    """`mlaan train` in a process of its own, after some lines of Python that spoil it."""
    code = f"import sys, os, signal, torch\ntorch.set_num_threads(1)\n{sabotage}\n"
    code += f"from mlaan.cli import main\nsys.exit(main({['train', *flags(folder, **changes)]!r}))"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)


WRITE_AT_ONCE = """
from mlaan.observe.saver import Saver
Saver.is_busy = property(lambda self: self.wait() and False)
"""
"""What `trainer.tiny.write_at_once` does, for a process."""
AT_STEP = """
from mlaan.engine import Engine
real, count = Engine.step, []
def step(self, images, labels):
    count.append(1)
    if len(count) == {step}:
        {action}
    return real(self, images, labels)
Engine.step = step
"""


def test_a_run_writes_its_folder(finished):
    names = sorted(path.name for path in finished.iterdir())
    assert names == [
        ".lock",
        "best.pt",
        "checkpoints",
        "config.toml",
        "env.json",
        "last.pt",
        "metrics.jsonl",
        "report.png",
    ]
    assert json.loads((finished / "env.json").read_text())["threads"] == 1


def test_losses_without_logits_go_through_every_command(tmp_path, capsys):
    """InfoPro's contrastive heads answer nothing: no accuracy is shown for them, and none is made up."""
    run = tmp_path / "run"
    words = flags(run, partition__modules="3", run__tensorboard="true", train__epochs="2")
    preset = words.index("--method.preset")
    words[preset : preset + 2] = ["--method.name", "infopro", "--method.loss", "contrastive"]
    assert main(["train", *words]) == 0
    epochs = [
        row for row in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()) if row["type"] == "epoch"
    ]
    assert len(epochs) == 2
    for row in epochs:
        assert sorted(row["losses"]) == ["0.local", "1.local", "2.classifier"]
        assert list(row["top1"]) == ["2.classifier"]
    for command in (["report"], ["eval"], ["probe"], ["plan", "--config"], ["export"]):
        path = run / "config.toml" if "--config" in command else run
        assert main([*command, str(path)]) == 0, command
    assert main(["train", "--resume", str(run), "--train.epochs", "3"]) == 0
    shown = capsys.readouterr().out
    assert "nan" not in shown.lower()
    assert (run / "report.png").stat().st_size > 10_000


def test_off_a_terminal_a_run_is_a_line_per_epoch_and_a_table(tmp_path, capsys):
    start(tmp_path / "run")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"resnet20 by mlaan on synthetic, 3 epochs on cpu, into {tmp_path / 'run'}"
    assert [line[:9] for line in lines[1:4]] == ["epoch 1/3", "epoch 2/3", "epoch 3/3"]
    assert any(line.startswith("test top-1") for line in lines)
    assert not any("\x1b" in line for line in lines)


def test_a_killed_run_goes_on_to_the_uninterrupted_end(tmp_path, finished):
    """SIGKILL right after a checkpoint inside the second epoch; the rest by --resume, bit for bit."""
    sabotage = f"""
{WRITE_AT_ONCE}
from mlaan import checkpoint
save = checkpoint.save
def killing(content, *rest):
    save(content, *rest)
    if content.progress["step"] == {STEPS + 2}:
        os.kill(os.getpid(), signal.SIGKILL)
checkpoint.save = killing
"""
    killed = in_a_process(tmp_path / "run", sabotage, run__checkpoint_minutes="1e-9")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    newest, _, _ = checkpoint.load_first(RunFolder(tmp_path / "run").newest())
    assert newest.progress["batch"] == 2
    assert resume(tmp_path / "run") == 0
    assert same(final_state(tmp_path / "run"), final_state(finished))


@pytest.mark.parametrize(("name", "status"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_signal_leaves_a_checkpoint_and_its_exit_status(tmp_path, name, status):
    sabotage = AT_STEP.format(step=STEPS + 2, action=f"os.kill(os.getpid(), signal.{name})")
    sabotage += "\nsignal.signal(signal.SIGHUP, signal.SIG_DFL)\n"  # also where the tests run under nohup
    stopped = in_a_process(tmp_path / "run", sabotage)
    assert stopped.returncode == status, stopped.stderr
    last = stopped.stdout.splitlines()[-1]
    assert last == f"stopped in epoch 2, step 7: go on with `mlaan train --resume {tmp_path / 'run'}`"
    assert checkpoint.load(tmp_path / "run" / "last.pt").progress["step"] == STEPS + 2
    assert "Traceback" not in stopped.stderr


def test_under_nohup_a_run_outlives_its_terminal(tmp_path):
    sabotage = AT_STEP.format(step=STEPS + 2, action="os.kill(os.getpid(), signal.SIGHUP)")
    sabotage += "\nsignal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
    assert in_a_process(tmp_path / "run", sabotage).returncode == 0


def test_a_second_sigint_stops_at_once(tmp_path, monkeypatch, capsys):
    from mlaan.engine import Engine

    def twice(self, images, labels):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("went on")

    monkeypatch.setattr(Engine, "step", twice)
    before = signal.getsignal(signal.SIGINT)
    assert start(tmp_path / "run") == 130
    assert "stopped at once" in capsys.readouterr().out
    assert checkpoint.load(tmp_path / "run" / "last.pt").progress["step"] == 0
    assert signal.getsignal(signal.SIGINT) is before


def test_a_folder_with_a_run_is_refused(finished, capsys):
    before = (finished / "last.pt").read_bytes()
    assert start(finished) == 2
    assert "--resume" in capsys.readouterr().err
    assert (finished / "last.pt").read_bytes() == before


def test_a_finished_run_says_so_and_goes_on_with_more_epochs(tmp_path, capsys):
    start(tmp_path / "run", train__epochs="1")
    capsys.readouterr()
    assert resume(tmp_path / "run") == 0
    assert "all 1 epochs are trained already" in capsys.readouterr().out
    assert resume(tmp_path / "run", "--train.epochs", "2") == 0
    assert checkpoint.load(tmp_path / "run" / "last.pt").progress["epoch"] == 2
    assert "epochs = 2" in (tmp_path / "run" / "config.toml").read_text()


@pytest.mark.parametrize("words", [["--optim.learning_rate", "1"], ["--data.batch=4"], ["--run.folder", "x"]])
def test_a_run_that_goes_on_keeps_its_settings(finished, capsys, words):
    assert resume(finished, *words) == 2
    assert "cannot change a run that goes on" in capsys.readouterr().err


def test_resume_takes_no_config_file(finished, capsys):
    assert resume(finished, "--config", str(finished / "config.toml")) == 2
    assert "leave out --config" in capsys.readouterr().err


def test_a_checkpoint_of_another_model_is_refused_naming_both(tmp_path, finished, capsys):
    start(tmp_path / "run", model__name="resnet32", train__epochs="1")
    (tmp_path / "run" / "last.pt").write_bytes((finished / "last.pt").read_bytes())
    capsys.readouterr()
    assert resume(tmp_path / "run") == 2
    error = capsys.readouterr().err
    assert "holds a resnet20 of another run, this run trains resnet32" in error
    assert "model.name" in error
    assert error.count("\n") == 1


def test_weights_of_another_shape_are_refused(finished, capsys):
    assert main(["eval", str(finished), "--data.classes", "4"]) == 2
    error = capsys.readouterr().err
    assert "does not fit these settings" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("what", ["folder", "last.pt"])
def test_eval_gives_the_runs_own_result(finished, capsys, what):
    assert main(["eval", str(finished if what == "folder" else finished / what)]) == 0
    out = capsys.readouterr().out
    last = json.loads((finished / "metrics.jsonl").read_text().splitlines()[-1])
    assert f"top-1   {100 * last['test_top1']:.1f} %" in out
    assert f"loss    {last['test_loss']:.4f}" in out


def test_eval_changes_no_setting_of_the_network(finished, capsys):
    assert main(["eval", str(finished), "--model.name", "resnet32"]) == 2
    said = capsys.readouterr().err
    assert "--model.name resnet32 cannot change a trained network: only data.*, train.device, train.precision" in said


def test_a_damaged_checkpoint_is_one_line(tmp_path, finished, capsys):
    bad = tmp_path / "bad.pt"
    bad.write_bytes((finished / "last.pt").read_bytes()[:-1000])
    assert main(["eval", str(bad)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("mlaan: ")
    assert "cut short" in error
    assert error.count("\n") == 1


def test_report_draws_again(finished, capsys):
    (finished / "report.png").unlink()
    assert main(["report", str(finished)]) == 0
    assert (finished / "report.png").stat().st_size > 10_000
    assert "test top-1" in capsys.readouterr().out


def test_doctor_names_versions_libraries_and_what_is_missing(capsys, monkeypatch):
    from mlaan.cli import doctor

    monkeypatch.setattr(doctor, "version", lambda name: None if name == "tensorboard" else "1.2.3")
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert f"torch         {torch.__version__}" in out
    assert re.search(r"native libraries\n  cpu +(loaded|missing|failed|off): ", out)
    assert "pip install tensorboard" in out
    assert "pip install rich" not in out


def test_missing_tensorboard_is_said_once_and_the_run_goes_on(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("mlaan.observe.metrics.TensorBoardLog.is_available", staticmethod(lambda: False))
    assert start(tmp_path / "run", run__tensorboard="true", train__epochs="1") == 0
    assert capsys.readouterr().out.count("pip install tensorboard") == 1


def test_tensorboard_events_are_written(tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert start(tmp_path / "run", run__tensorboard="true", train__epochs="1") == 0
    assert list(RunFolder(tmp_path / "run").tensorboard.glob("events*"))


def test_the_command_line_imports_no_optional_part():
    code = """
import sys
import mlaan.cli, mlaan.cli.train, mlaan.cli.evaluate, mlaan.cli.plan, mlaan.cli.report, mlaan.cli.doctor
sys.exit(str([name for name in ("tensorboard", "matplotlib", "rich", "sklearn") if name in sys.modules]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.strip() == "[]"


def test_a_warning_is_one_line(capsys, monkeypatch):
    from mlaan.cli import doctor

    def warn(arguments, overrides):
        warnings.warn("slower than need be", RuntimeWarning, stacklevel=2)
        return 0

    monkeypatch.setattr(doctor, "run", warn)
    assert main(["doctor"]) == 0
    assert capsys.readouterr().err == "mlaan: slower than need be\n"


def test_a_file_name_that_is_no_text_can_be_printed(monkeypatch):
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="strict")
    monkeypatch.setattr("sys.stdout", out)
    monkeypatch.setattr("mlaan.cli.parse", lambda words: (lambda *_: print("caf\udce9.JPEG"), None, None))
    main([])
    out.flush()
    assert out.buffer.getvalue() == b"caf\\udce9.JPEG\n"
