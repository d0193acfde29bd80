"""Whatever a person gets wrong ends in one line that names it and the fix, and a status that isn't 0."""

import pickle
import shutil
from pathlib import Path

import pytest
import torch

from data.idx_files import NAMES, write_set
from mlaan.cli import main
from mlaan.run_folder import RunFolder
from trainer.tiny import final_state, one_thread, resume, same, start

__all__ = ["one_thread"]


class Hostile:
    """Unpickled without care, it writes a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert start(folder, train__epochs="1") == 0
    return folder


def complaint(capsys, words: list[str]) -> str:
    """What a command that must fail prints: one line."""
    capsys.readouterr()
    status = main(words)
    output = capsys.readouterr()
    assert status == 2
    assert output.err.startswith("mlaan: ")
    assert output.err.count("\n") == 1
    return output.err


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--partition.moduls", "3"], ["partition.moduls", "did you mean 'partition.modules'"]),
        (["--partition.modules", "four"], ["partition.modules", "four", "integer"]),
        (["--method.preset", "papr"], ["method.preset", "papr", "paper"]),
        (["--method.name", "dgl", "--method.reach", "2"], ["method.reach", "mlaan", "dgl"]),
        (["--partition.modules", "10"], ["partition.modules = 10", "9 blocks", "choose 1 to 9"]),
        (["--method.reach", "0"], ["method.reach = 0", "at least 1"]),
        (["--memory.schedule", "windowed"], ["memory.window = 0", "windowed"]),
        (["--model.name", "resnet21"], ["model.name", "resnet21", "did you mean"]),
        (["--train.device", "cuda:99"], ["train.device", "cuda:99"]),
        (["--config", "no/such.toml"], ["no/such.toml"]),
        (["--resume", "no/such/run"], ["no/such/run"]),
        (["--optim.warmup_epochs", "50"], ["optim.warmup_epochs = 50", "train.epochs = 20"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_settings(tmp_path, monkeypatch, capsys, words, parts):
    monkeypatch.chdir(tmp_path)
    error = complaint(capsys, ["train", *words])
    assert all(part in error for part in parts), error
    assert not list(tmp_path.iterdir())  # nothing was begun


def test_missing_folder(tmp_path, capsys):
    error = complaint(capsys, ["train", "--data.name", "fashion_mnist", "--data.root", str(tmp_path / "none")])
    assert f"data.root = '{tmp_path / 'none'}' is not a folder" in error
    assert "apt-get install dataset-fashion-mnist" in error


def test_truncated_idx_file(tmp_path, capsys):
    write_set(tmp_path)
    path = tmp_path / NAMES["train", 3]
    path.write_bytes(path.read_bytes()[:-100])
    error = complaint(capsys, ["train", "--data.name", "fashion_mnist", "--data.root", str(tmp_path)])
    assert path.name in error
    assert "data.root" in error or "again" in error


def test_wrong_image_size(tmp_path, capsys):
    write_set(tmp_path, size=20)
    error = complaint(capsys, ["train", "--data.name", "fashion_mnist", "--data.root", str(tmp_path)])
    assert "20" in error
    assert "28" in error


def test_checkpoint_of_another_model(tmp_path, run, capsys):
    start(tmp_path / "other", model__name="resnet32", train__epochs="1")
    shutil.copy(run / "last.pt", tmp_path / "other" / "last.pt")
    error = complaint(capsys, ["train", "--resume", str(tmp_path / "other")])
    assert "resnet20" in error
    assert "resnet32" in error


@pytest.mark.parametrize("share", [0.0, 0.3, 0.999])
def test_checkpoint_cut_short(tmp_path, run, capsys, share):
    shutil.copytree(run, tmp_path / "run")
    whole = (run / "last.pt").read_bytes()
    (tmp_path / "run" / "last.pt").unlink()  # best.pt may be a second name of the same file
    (tmp_path / "run" / "last.pt").write_bytes(whole[: int(share * len(whole))])
    assert "last.pt" in complaint(capsys, ["eval", str(tmp_path / "run")])
    assert resume(tmp_path / "run") == 0
    said = capsys.readouterr().out
    assert f"{tmp_path / 'run' / 'last.pt'} is cut short" in said
    assert "going on from" in said


def test_a_checkpoint_put_in_the_place_of_the_last_is_gone_on_from(tmp_path, run, capsys):
    folder = tmp_path / "run"
    start(folder, train__epochs="1")
    shutil.copy(folder / "best.pt", tmp_path / "first.pt")
    resume(folder, "--train.epochs", "3")
    expected = final_state(folder)
    (folder / "last.pt").unlink()  # it is a second name of another one
    shutil.copy(tmp_path / "first.pt", folder / "last.pt")
    capsys.readouterr()
    assert resume(folder) == 0
    assert "from epoch 2, step 5" in capsys.readouterr().out
    assert same(final_state(folder), expected)


@pytest.mark.parametrize("damage", ["cut", "bit"])
def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one_to_the_same_end(tmp_path, run, capsys, damage):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)  # the links become files
    newest, before, *_ = RunFolder(folder).newest()[1:]
    content = bytearray(newest.read_bytes())
    content[len(content) // 3] ^= 1
    for path in (newest, folder / "last.pt", folder / "best.pt"):
        path.write_bytes(content if damage == "bit" else content[: len(content) // 3])
    assert resume(folder) == 0
    said = capsys.readouterr().out
    assert f"{newest} is {'damaged' if damage == 'bit' else 'cut short'}" in said
    assert f"going on from {before}" in said
    assert same(final_state(folder), final_state(run))


@pytest.mark.parametrize("write", [torch.save, lambda thing, path: path.write_bytes(pickle.dumps(thing))])
def test_pickle_that_would_run_code(tmp_path, run, capsys, write):
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "last.pt").unlink()
    write({"format": 1, "engine": Hostile(tmp_path / "executed")}, tmp_path / "run" / "last.pt")
    for words in (["train", "--resume", str(tmp_path / "run")], ["eval", str(tmp_path / "run" / "last.pt")]):
        assert "nothing in it was executed" in complaint(capsys, words)
    assert not (tmp_path / "executed").exists()
    if write is torch.save:  # the trap itself works
        torch.load(tmp_path / "run" / "last.pt", weights_only=False)
        assert (tmp_path / "executed").exists()


def test_a_run_repeats_from_its_own_config(tmp_path, run):
    folder = tmp_path / "again"
    assert main(["train", "--config", str(run / "config.toml"), "--run.folder", str(folder)]) == 0
    assert same(final_state(folder), final_state(run))
    other = tmp_path / "other"
    assert main(["train", "--config", str(run / "config.toml"), "--run.folder", str(other), "--train.seed", "1"]) == 0
    assert not same(final_state(other), final_state(run))


def test_without_the_loaders_state_a_resumed_run_differs(tmp_path, run, monkeypatch):
    """The negative control of exact resume: the batches after the restart are then the wrong ones."""
    from mlaan.data import MemoryLoader
    from mlaan.observe.recorder import Recorder
    from mlaan.observe.stop import Stopped

    def stop_at_step_two(folder):
        with pytest.MonkeyPatch.context() as patch:
            stepped = Recorder.stepped

            def stop(self, state):
                stepped(self, state)
                if state.step == 2:
                    self.save()
                    raise Stopped(15)

            patch.setattr(Recorder, "stepped", stop)
            assert start(folder, train__epochs="1") == 143

    stop_at_step_two(tmp_path / "with")
    assert resume(tmp_path / "with") == 0
    assert same(final_state(tmp_path / "with"), final_state(run))
    stop_at_step_two(tmp_path / "without")
    monkeypatch.setattr(MemoryLoader, "load_state_dict", lambda self, state: None)
    assert resume(tmp_path / "without") == 0
    assert not same(final_state(tmp_path / "without"), final_state(run))
