"""The run folder: a name of its own for every run, and no run written over."""

import json
import os

import pytest
import torch

from mlaan.config import Config, load
from mlaan.errors import UserError
from mlaan.observe import environment
from mlaan.run_folder import RunFolder
from trainer.tiny import config


def test_default_folders_are_named_by_what_is_trained_and_never_shared(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("time.strftime", lambda form: "20300102-030405")
    names = [RunFolder.create(config()).path.as_posix() for _ in range(3)]
    stem = "runs/synthetic-resnet20-mlaan-20300102-030405"
    assert names == [stem, f"{stem}-2", f"{stem}-3"]


def test_a_folder_that_holds_a_run_is_refused_with_the_way_on(tmp_path):
    settings = config(run__folder=str(tmp_path / "mine"))
    folder = RunFolder.create(settings)
    assert RunFolder.create(settings) == folder  # nothing was written yet
    folder.write_config(settings)
    with pytest.raises(UserError, match=r"holds a run already.*--resume .*mine.*--run\.folder"):
        RunFolder.create(settings)


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_a_folder_that_cannot_be_made(tmp_path, name):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"run.folder"):
        RunFolder.create(config(run__folder=str(tmp_path / name)))


def test_opening_what_is_no_run(tmp_path):
    with pytest.raises(UserError, match="holds no run"):
        RunFolder.open(tmp_path)
    with pytest.raises(UserError, match="is not a run folder"):
        RunFolder.open(tmp_path / "none")


def test_the_written_config_is_the_config_less_its_folder(tmp_path):
    """A run from it, once more, needs a folder of its own."""
    settings = config(run__folder=str(tmp_path), optim__learning_rate="0.1234567890123")
    folder = RunFolder.create(settings)
    folder.write_config(settings)
    assert load(Config, folder.config) == config(run__folder="", optim__learning_rate="0.1234567890123")
    assert os.listdir(tmp_path) == ["config.toml"]


def test_leftovers_of_a_killed_process_go_and_nothing_else(tmp_path):
    for name in (".last.pt.123.tmp", ".best.pt.9.tmp", "last.pt", ".hidden"):
        (tmp_path / name).write_text("")
    RunFolder(tmp_path).remove_leftovers()
    assert sorted(os.listdir(tmp_path)) == [".hidden", "last.pt"]


def test_environment_names_versions_and_threads_but_no_person_and_no_variable(monkeypatch):
    monkeypatch.setenv("MLAAN_TEST_SECRET", "hunter2")
    found = environment.environment(torch.device("cpu"))
    assert found["torch"] == torch.__version__
    assert found["threads"] == torch.get_num_threads()
    assert found["packages"]["torch"] is not None
    text = json.dumps(found)
    for private in ("hunter2", os.path.expanduser("~/"), os.uname().nodename):
        assert private not in text


def test_what_may_change_results_is_told():
    here = environment.environment(torch.device("cpu"))
    assert environment.differences(here, dict(here)) == []
    assert environment.differences({**here, "threads": 77}, here) == [f"threads was 77, is {here['threads']}"]
    assert environment.differences({**here, "python": "0"}, here) == []


def test_a_commit_is_told_only_of_this_projects_own_files(monkeypatch, tmp_path):
    monkeypatch.setattr(environment, "__file__", str(tmp_path / "environment.py"))
    assert environment.environment(torch.device("cpu"))["commit"] is None
