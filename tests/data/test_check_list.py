"""The kept list of a check: where it is, that it is whole or ignored, and what a full disk does."""

import errno
import os
import pickle

import numpy as np
import pytest

from data.small_part import GOOD, look, part, same, training, write
from mlaan.data import check
from mlaan.data.check import open_part, read_list
from mlaan.errors import UserError

__all__ = ["part"]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/mlaan"


@pytest.fixture
def read_only(part, monkeypatch):
    """Makes the part seem so; root may write anywhere."""
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: part not in (path, *path.parents) and real(path, mode))


def hidden(part):
    return sorted(path.name for path in part.iterdir() if path.name.startswith("."))


def test_the_list_is_beside_the_classes_and_holds_no_pickle(part, cache):
    checked = look(part)
    assert checked.place == part / ".mlaan-check.npz"
    assert hidden(part) == [".mlaan-check.npz"]
    assert not cache.exists()
    with np.load(checked.place, allow_pickle=False) as content:
        found = {name: content[name] for name in content.files}
    assert not any(array.dtype.hasobject for array in found.values())
    assert found["names"].tolist()[-1] == b"dog/empty.jpg"


def test_of_a_folder_that_cannot_be_written_the_list_is_in_the_cache(part, cache, read_only):
    checked = look(part)
    assert checked.place.parent == cache
    assert hidden(part) == []
    names, note = training(part)
    assert names == GOOD
    assert "1 of 7 files left out" in note
    (part / "dog/empty.jpg").unlink()
    assert "has changed" in training(part)[1]


def test_lists_in_the_cache_are_each_of_one_folder(part, cache, monkeypatch, tmp_path):
    monkeypatch.setattr(os, "access", lambda *_: False)
    other = tmp_path / "other/train"
    write(other / "cat/1.jpg")
    assert look(part).place != look(other).place
    assert (training(part)[0], training(other)[0]) == (GOOD, ["cat/1.jpg"])
    monkeypatch.chdir(tmp_path)
    assert read_list(part.relative_to(tmp_path)) is not None, "by whatever way one gets there"


def test_the_newest_list_counts(part, cache, monkeypatch):
    """Whoever shares a folder may have checked it long ago, and it cannot be written now."""
    old = look(part).place
    os.utime(old, (1, 1))
    write(part / "cat/new.jpg")
    with monkeypatch.context() as patched:
        patched.setattr(os, "access", lambda *_: False)
        look(part)
    assert training(part)[0] == sorted([*GOOD, "cat/new.jpg"])
    write(part / "cat/newer.jpg")
    assert look(part).place == old
    assert training(part)[0] == sorted([*GOOD, "cat/new.jpg", "cat/newer.jpg"])


def test_a_folder_that_is_gone_is_named_though_its_list_is_there(part, cache, read_only):
    look(part)
    part.rename(part.parent / "unmounted")
    with pytest.raises(UserError, match=f"{part} is not there"):
        open_part(part, str(part.parent))


@pytest.mark.parametrize("place", ["x" * 300, "file"])
def test_a_cache_that_cannot_be_looked_into_stops_no_training(part, tmp_path, monkeypatch, place):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / place))
    assert "has not been checked" in training(part)[1]
    look(part)
    assert training(part)[0] == GOOD


def test_a_cache_that_cannot_be_written_is_named(part, tmp_path, monkeypatch, read_only):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(UserError, match=rf"^cannot keep the list of {part} in {tmp_path}/file/mlaan/check-\w+.npz: "):
        look(part)


@pytest.mark.parametrize("moment", ["in mid-file", "at the end"])
def test_a_full_disk_is_told_with_the_files_name_and_the_list_before_stays(part, monkeypatch, moment):
    before = look(part)
    content = before.place.read_bytes()
    add = part / "cat/new.jpg"
    write(add)
    real = np.savez_compressed

    def full(file, **arrays):
        file.write(b"PK half a list") if moment == "in mid-file" else real(file, **arrays)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(np, "savez_compressed", full)
        with pytest.raises(UserError) as caught:
            look(part)
    assert str(caught.value).startswith(f"cannot keep the list of {part} in {before.place}: No space left on device: ")
    assert hidden(part) == [".mlaan-check.npz"]
    assert before.place.read_bytes() == content
    add.unlink()
    look(part)
    assert training(part)[0] == GOOD


def test_a_list_is_never_half_there(part, monkeypatch):
    """A process that is killed while it writes leaves the list as it was."""
    place = look(part).place
    content, seen, real = place.read_bytes(), [], np.savez_compressed

    def watching(file, **arrays):
        real(file, **arrays)
        file.flush()
        seen.append(place.read_bytes())

    monkeypatch.setattr(np, "savez_compressed", watching)
    write(part / "cat/new.jpg")
    look(part)
    assert seen == [content]
    assert place.read_bytes() != content


def test_a_damaged_list_is_ignored_and_made_anew(part):
    whole = look(part)
    content = whole.place.read_bytes()
    damaged = [content[:length] for length in range(0, len(content), 40)]
    for place in range(0, len(content), 3):
        flipped = bytearray(content)
        flipped[place] ^= 0x55
        damaged.append(bytes(flipped))
    notes = []
    for spoilt in damaged:
        whole.place.write_bytes(spoilt)
        try:
            assert same(read_list(part), whole), "where it does not matter, such as in the time of day"
        except ValueError as error:
            notes.append(str(error))
    assert all(note.startswith(f"{whole.place} is ") for note in notes)
    assert len(notes) > len(damaged) / 3
    whole.place.write_bytes(content[:-100])
    names, note = training(part)
    assert len(names) == 7
    assert note.startswith(f"{part}: the list of its check is ignored ({whole.place} is damaged: ")
    assert note.endswith(f"); `mlaan data check {part.parent}` makes it anew")
    assert same(look(part), whole)
    assert training(part)[0] == GOOD


def test_a_list_of_another_version_is_ignored_and_made_anew(part, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(check, "_VERSION", 1)
        place = look(part).place
    names, note = training(part)
    assert len(names) == 7
    assert f"ignored ({place} is of another version); `mlaan data check" in note
    look(part)
    assert training(part)[0] == GOOD


class Hostile:
    """Unpickled without care, it makes a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("form", ["pickle", "an array of objects"])
def test_nothing_in_a_list_is_executed(part, tmp_path, form):
    place, target = look(part).place, str(tmp_path / "made")
    with np.load(place) as content:
        arrays = dict(content)
    if form == "pickle":
        place.write_bytes(pickle.dumps(Hostile(target)))
    else:
        np.savez(place, **arrays | {"names": np.array([Hostile(target)], dtype=object)})
    assert "is damaged: " in training(part)[1]
    assert not os.path.exists(target)
