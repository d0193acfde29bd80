"""A run folder of a table: how far it is, and whether it is the row's."""

import os
from dataclasses import replace

import pytest

from mlaan.errors import UserError
from table.folders import EPOCHS, finish, row, run, with_batch, write_metrics


@pytest.fixture
def one(tmp_path):
    return run(tmp_path, row(tmp_path))


def test_its_seed_is_in_its_config_and_its_names(tmp_path):
    third = run(tmp_path, row(tmp_path), seed=3)
    assert third.config.train.seed == 3
    assert (third.name, third.log) == ("a-seed3", tmp_path / "a-seed3.log")


def test_missing_stopped_finished(one):
    assert one.state() == "missing"
    write_metrics(one.folder.path, 1)
    assert one.state() == "missing"  # what cannot be resumed is not there yet
    finish(one, epochs=EPOCHS - 1)
    assert one.state() == "stopped"
    finish(one)
    assert one.state() == "finished"
    one.folder.last.unlink()
    assert one.state() == "stopped"


def test_killed_between_the_last_metrics_and_the_checkpoint_is_not_finished(one):
    finish(one)
    before = one.folder.metrics.stat().st_mtime_ns - 1
    os.utime(one.folder.last, ns=(before, before))
    assert one.state() == "stopped"


def test_other_settings_are_refused_by_their_key(one):
    one.require_same_settings()
    finish(one)
    one.require_same_settings()
    for other, key in (
        (replace(one, seed=1), "train.seed = 0, but .*a.toml now says 1"),
        (replace(one, row=replace(one.row, config=with_batch(one.row.config, "4"))), "data.batch = 8, but .* says 4"),
        (run(one.folder.path.parent, row(one.row.file.parent, train__epochs="9")), "train.epochs = 3"),
        (run(one.folder.path.parent, row(one.row.file.parent, model__name="resnet32")), "model.name = .resnet20."),
    ):
        with pytest.raises(UserError, match=key):
            other.require_same_settings()


def test_what_is_written_and_how_often_may_change(one):
    finish(one)
    run(one.folder.path.parent, row(one.row.file.parent, run__checkpoint_minutes="1")).require_same_settings()


def test_leftovers_of_a_run_that_never_began_are_taken_for_its_own(one):
    write_metrics(one.folder.path, 1)
    one.folder.checkpoints.mkdir()
    for name in (".lock", "env.json", "images.npz", "last.pt", ".config.toml.123.tmp"):
        (one.folder.path / name).write_bytes(b"")
    one.require_own_folder()


def test_a_persons_files_are_not(one):
    finish(one)
    one.require_own_folder()
    (one.folder.path / ".lock").touch()
    (one.folder.path / "notes.txt").touch()
    one.require_own_folder()
    one.folder.config.unlink()
    with pytest.raises(UserError, match=r"holds notes.txt, which is of no run"):
        one.require_own_folder()
    (one.folder.path / "notes.txt").unlink()
    (one.folder.path / ".lock").unlink()
    with pytest.raises(UserError, match=r"holds last.pt, which is of no run"):
        one.require_own_folder()
