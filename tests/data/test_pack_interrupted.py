"""A pack that is killed, stopped or out of room at any moment, and then goes on to the very same bytes."""

import errno
import multiprocessing
import os
import resource
import select
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from data.imagenet_folder import make_folder
from data.packing import SETTINGS, contents, pack
from mlaan.data import decoders
from mlaan.data import pack as packer
from mlaan.data.files import decode
from mlaan.errors import UserError

IMAGES, SHARDS = 4, 2
SHARD_BYTES = 1500


class Set:
    """A folder and its pack, made in one go.

    Attributes:
        root: the folder.
        whole: all files of the pack.
        ends: how many files of the folder are in each shard and those before.
        writes: how many files are written.
    """

    def __init__(self, root: Path, out: Path) -> None:
        self.root = make_folder(root, classes=2, train=IMAGES, val=1, bad=False, sides=(20, 40)).root
        self.pack(out)
        self.whole = contents(out)
        with np.load(out / "train/index.npz") as index:
            self.ends = np.cumsum(np.bincount(index["shards"])).tolist()
        self.writes = 1 + 2 * len(self.ends) + 1

    def pack(self, out: Path, **arguments) -> None:
        pack(self.root, out, shard_bytes=SHARD_BYTES, **arguments)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    made = Set(tmp_path_factory.mktemp("set"), tmp_path_factory.mktemp("whole"))
    assert len(made.ends) == SHARDS
    assert made.writes == len(WRITTEN)
    return made


WRITTEN = ["pack.json", *(f"shard-0000{i}.bin{end}" for i in range(SHARDS) for end in ("", ".json")), "index.npz"]
MOMENTS = [(moment, name) for name in WRITTEN for moment in ("half written", "written", "renamed")]
MOMENTS += [("removed", name) for name in WRITTEN if "bin.json" in name]


def call_at(monkeypatch, moment, name, action):
    """Has `action` called at a moment in the life of a file of the pack."""
    sync, rename, remove = os.fsync, Path.replace, Path.unlink

    def fsync(file):
        if f"/.{name}." in os.readlink(f"/proc/self/fd/{file}") and moment == "half written":
            os.ftruncate(file, os.fstat(file).st_size // 2)
            action()
        sync(file)

    def replace(self, target):
        if target.name == name and moment == "written":
            action()
        found = rename(self, target)
        if target.name == name and moment == "renamed":
            action()
        return found

    def unlink(self, **options):
        remove(self, **options)
        if self.name == name and moment == "removed":
            action()

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", replace)
    monkeypatch.setattr(Path, "unlink", unlink)


def in_a_child(action):
    """Runs something in a process that does not clean up at its end; gives its exit status."""
    child = os.fork()
    if not child:
        try:
            action()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def counted(monkeypatch, log):
    """Counts the images that are decoded, in whatever process."""

    def decode_and_count(path):
        with log.open("ab") as file:
            file.write(b".")
        return decode(path)

    log.write_bytes(b"")
    monkeypatch.setattr(packer, "decode", decode_and_count)


@pytest.mark.parametrize(("moment", "name"), MOMENTS)
def test_a_pack_that_was_killed_goes_on_behind_its_last_whole_shard(made, tmp_path, monkeypatch, moment, name):
    out, log = tmp_path / "out", tmp_path / "log"
    with monkeypatch.context() as killing:
        call_at(killing, moment, name, lambda: os.kill(os.getpid(), signal.SIGKILL))
        assert in_a_child(lambda: made.pack(out)) == -signal.SIGKILL
    left = {path.name for path in (out / "train").iterdir()}
    lists = sum(f"shard-0000{i}.bin.json" in left for i in range(SHARDS))
    done = IMAGES if "index.npz" in left else ([0, *made.ends])[lists]
    counted(monkeypatch, log)
    made.pack(out)
    assert contents(out) == made.whole
    assert log.stat().st_size == IMAGES - done


def test_a_pack_that_is_stopped_leaves_no_file_and_no_process_behind(made, tmp_path, monkeypatch):
    monkeypatch.setattr(decoders, "_CHUNK", 1)
    for number in range(1, IMAGES + 1):
        out = tmp_path / str(number)

        def stop(done, count, number=number):
            if done == number:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            made.pack(out, progress=stop, workers=2)
        assert multiprocessing.active_children() == []
        assert {path.name for path in (out / "train").iterdir()} <= {*WRITTEN}
        made.pack(out)
        assert contents(out) == made.whole


@pytest.mark.parametrize("name", WRITTEN)
def test_a_full_disk_is_told_and_the_pack_goes_on_later(made, tmp_path, monkeypatch, name):
    def fail():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as full:
        call_at(full, "half written", name, fail)
        with pytest.raises(UserError) as caught:
            made.pack(tmp_path)
    assert str(caught.value) == (
        f"cannot write into {tmp_path}/train: No space left on device: make room there, or give another folder; "
        "the same command again goes on"
    )
    assert multiprocessing.active_children() == []
    assert {path.name for path in (tmp_path / "train").iterdir()} == {*WRITTEN[: WRITTEN.index(name)]}
    made.pack(tmp_path)
    assert contents(tmp_path) == made.whole


def test_a_system_that_takes_no_more_bytes(made, tmp_path):
    """The system's own refusal in the middle of a write, not a made-up one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(UserError, match="train: File too large: make room there"):
            made.pack(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in (tmp_path / "train").iterdir()] == ["pack.json"]
    made.pack(tmp_path)
    assert contents(tmp_path) == made.whole


@pytest.mark.parametrize("is_gone", [True, False])
def test_a_shard_that_was_lost_meanwhile_is_packed_again(made, tmp_path, monkeypatch, is_gone):
    call_at(monkeypatch, "written", "index.npz", lambda: os.kill(os.getpid(), signal.SIGKILL))
    assert in_a_child(lambda: made.pack(tmp_path)) == -signal.SIGKILL
    monkeypatch.undo()
    shard = tmp_path / "train/shard-00001.bin"
    if is_gone:
        shard.unlink()
    else:
        shard.write_bytes(shard.read_bytes()[:-1])
    made.pack(tmp_path)
    assert contents(tmp_path) == made.whole


def test_other_settings_are_refused_while_a_pack_is_not_done(made, tmp_path, monkeypatch):
    call_at(monkeypatch, "renamed", "shard-00000.bin", lambda: os.kill(os.getpid(), signal.SIGKILL))
    assert in_a_child(lambda: made.pack(tmp_path)) == -signal.SIGKILL
    before = contents(tmp_path)
    with pytest.raises(
        UserError, match=f"holds a pack with size = {SETTINGS.size}, this one has 20: give a new folder"
    ):
        made.pack(tmp_path, size=20)
    assert contents(tmp_path) == before


def test_workers_end_with_the_process_that_was_killed(made, tmp_path, monkeypatch):
    """Each would wait for ever for work that does not come."""
    ours, theirs = os.pipe()  # it stays open as long as one of the processes lives
    os.set_inheritable(theirs, True)
    monkeypatch.setattr(packer, "decode", lambda path: os.write(theirs, b".") and time.sleep(60))
    child = os.fork()
    if not child:
        try:
            made.pack(tmp_path, workers=2)
        finally:
            os._exit(0)
    os.close(theirs)
    assert os.read(ours, 1) == b"."
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    deadline = time.monotonic() + 20
    while select.select([ours], [], [], max(0, deadline - time.monotonic()))[0]:
        if not os.read(ours, 1):
            break
    assert time.monotonic() < deadline
    os.close(ours)
