"""The lists of tar files' members: kept until a tar changes, and complete or with a word on what is missing."""

import errno
import os
import tarfile
from pathlib import Path

import pytest
import torch

from data.tars import encoded, samples, write_tar
from mlaan.data import tar
from mlaan.data.files import decode
from mlaan.data.tar import TarImages
from mlaan.errors import UserError

BLOCK = tarfile.BLOCKSIZE


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """Where the lists of tar files are kept."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder / "mlaan"


def opened(root, members=None):
    if members is not None:
        write_tar(root / "train/0.tar", members)
    return TarImages.open(root, "train")


def names(images):
    return [images.name(i).split(" in ")[0] for i in range(len(images))]


def counted(monkeypatch):
    """The files whose members are looked at."""
    seen, real = [], tar._list_file
    monkeypatch.setattr(tar, "_list_file", lambda path: seen.append(path.name) or real(path))
    return seen


def test_the_list_is_kept_until_a_tar_changes(tmp_path, monkeypatch, cache):
    seen = counted(monkeypatch)
    for number in range(2):
        write_tar(tmp_path / f"train/{number}.tar", samples([number], number))
    first = opened(tmp_path)
    assert seen == ["0.tar", "1.tar"]
    again = opened(tmp_path)
    assert seen == ["0.tar", "1.tar"]
    assert again.fingerprint() == first.fingerprint()
    assert (again.classes, again.note, names(again)) == (first.classes, first.note, names(first))
    assert [torch.equal(again.read(i), first.read(i)) for i in range(2)] == [True, True]
    place = tmp_path / "train/1.tar"
    size, written = place.stat().st_size, place.stat().st_mtime_ns
    write_tar(place, samples([7], 1))
    os.utime(place, ns=(written, written + 1))
    assert place.stat().st_size == size, "only the time tells"
    assert opened(tmp_path).labels.tolist() == [0, 7]
    write_tar(place, samples([7, 5] * 20, 1))
    os.utime(place, ns=(written, written + 1))
    assert len(opened(tmp_path)) == 41, "only the size tells"
    write_tar(tmp_path / "train/2.tar", samples([3], 2))
    assert len(opened(tmp_path)) == 42
    (tmp_path / "train/0.tar").unlink()
    assert len(opened(tmp_path)) == 41
    assert not list(cache.glob(".*"))


def test_a_list_made_by_another_version_or_damaged_is_made_anew(tmp_path, monkeypatch, cache):
    seen = counted(monkeypatch)
    expected = opened(tmp_path, samples([0, 1])).fingerprint()
    monkeypatch.setattr(tar, "_LISTING", -1)
    assert opened(tmp_path).fingerprint() == expected
    assert len(seen) == 2
    for number, spoil in enumerate((lambda content: b"text", lambda content: content[:-5], lambda content: b"")):
        for place in cache.iterdir():
            place.write_bytes(spoil(place.read_bytes()))
        assert opened(tmp_path).fingerprint() == expected
        assert len(seen) == 3 + number


def test_where_no_list_can_be_kept_it_is_made_each_time(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    seen = counted(monkeypatch)
    assert len(opened(tmp_path, samples([0, 1]))) == len(opened(tmp_path)) == 2
    assert len(seen) == 2


def test_on_a_file_system_that_takes_no_writes_the_list_is_made_each_time(tmp_path, monkeypatch):
    """Such a system says so of every change, even the removal of what is not there."""
    write_tar(tmp_path / "train/0.tar", samples([0, 1]))

    def fail(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    for name in ("mkdir", "replace", "unlink"):
        monkeypatch.setattr(Path, name, fail)
    seen = counted(monkeypatch)
    assert len(opened(tmp_path)) == len(opened(tmp_path)) == 2
    assert len(seen) == 2


SAMPLES = samples([0, 1, 2, 1])


@pytest.fixture
def place(tmp_path):
    """A whole tar file of four images."""
    write_tar(tmp_path / "train/0.tar", SAMPLES)
    return tmp_path / "train/0.tar"


def members(place):
    with tarfile.open(place) as archive:
        return {member.name: member for member in archive}


def flip(place, at):
    content = bytearray(place.read_bytes())
    content[at] ^= 64
    place.write_bytes(content)


@pytest.mark.parametrize("name", [*SAMPLES][2:])
def test_what_comes_after_a_damaged_header_is_not_left_out_in_silence(place, name):
    """Python's module takes it for the end."""
    at = members(place)[name].offset
    flip(place, at + 5)
    images = opened(place.parents[1])
    earlier = [*SAMPLES][: [*SAMPLES].index(name)]
    assert names(images) == [key for key in earlier if key.endswith("jpg") and key.replace("jpg", "cls") in earlier]
    assert f"{place} is damaged or cut short at byte {at:,}: what comes after is left out" in images.note


@pytest.mark.parametrize("where", ["image", "padding", "class", "header", "end of a member"])
def test_what_is_missing_of_a_tar_that_was_cut_short_is_told(place, where):
    image, label = members(place)["000002.jpg"], members(place)["000002.cls"]
    cut = {
        "image": image.offset_data + image.size // 2,
        "padding": image.offset_data + image.size + 1,
        "class": label.offset_data,
        "header": label.offset + 100,
        "end of a member": label.offset_data + BLOCK,
    }[where]
    os.truncate(place, cut)
    for _ in "listed", "from the list that is kept":
        images = opened(place.parents[1])
        assert names(images) == [f"00000{i}.jpg" for i in range(3 if where == "end of a member" else 2)]
        assert images.note.startswith(f"{place} is damaged or cut short")
        assert images.read(1).shape == (3, 20, 30)


def test_an_image_that_was_cut_short_is_not_listed_though_its_class_is_there(place):
    write_tar(place, dict([*SAMPLES.items()][::-1]))
    image = members(place)["000000.jpg"]
    os.truncate(place, image.offset_data + image.size - 1)
    images = opened(place.parents[1])
    assert names(images) == [f"00000{i}.jpg" for i in (3, 2, 1)]
    assert images.note.startswith(f"{place} is damaged or cut short")


def test_any_cut_and_any_flipped_bit_of_a_header_is_told(place):
    whole = opened(place.parents[1])
    content = place.read_bytes()
    assert whole.note == ""
    end = max(member.offset_data + BLOCK for member in members(place).values())
    cuts = range(BLOCK, end + BLOCK, 333)
    bits = [member.offset + at for member in members(place).values() for at in range(0, 345, 23)]
    for at in (*cuts, *bits):
        spoilt = bytearray(content[:at] if at in cuts else content)
        if at not in cuts:
            spoilt[at] ^= 1
        place.write_bytes(spoilt)
        try:
            images = opened(place.parents[1])
        except UserError as error:
            told = str(error)
        else:
            told = images.note
            assert set(names(images)) <= set(names(whole))
        assert "is damaged or cut short" in told, at


def test_the_other_tars_are_used_all_the_same(place, tmp_path):
    write_tar(tmp_path / "train/1.tar", samples([2, 0], first=4))
    for spoilt in (b"", b"no tar" * 300, place.read_bytes()[:300]):
        place.write_bytes(spoilt)
        images = opened(tmp_path)
        assert images.labels.tolist() == [2, 0]
        assert images.note.startswith(f"{place} is damaged or cut short (")
        (tmp_path / "one.jpg").write_bytes(encoded(4))
        assert torch.equal(images.read(0), decode(str(tmp_path / "one.jpg")))


@pytest.mark.parametrize("fault", ["a folder", "leads nowhere"])
def test_a_tar_that_cannot_be_read_is_refused(place, fault):
    place.unlink()
    if fault == "a folder":
        place.parent.rmdir()
        (place.parents[1] / "train-0.tar").mkdir()
    else:
        place.symlink_to("nowhere")
    with pytest.raises(UserError) as caught:
        opened(place.parents[1])
    reason = {"a folder": "train-0.tar: Is a directory", "leads nowhere": "train/0.tar: No such file or directory"}
    assert str(caught.value) == (
        f"cannot read {place.parents[1]}/{reason[fault]}: see to that, or take it out of the folder"
    )


def test_a_disk_that_fails_for_a_moment_leaves_nothing_in_the_list(place, monkeypatch, cache):
    real, fail = tarfile.TarFile.next, [True]

    def next_member(self):
        if len(self.members) == 4 and fail:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(self)

    monkeypatch.setattr(tarfile.TarFile, "next", next_member)
    with pytest.raises(UserError, match=r"cannot read .*: Input/output error: "):
        opened(place.parents[1])
    fail.clear()
    assert len(opened(place.parents[1])) == 4
