"""The check of a folder: what it finds, what a second one looks at, and what training does with its list."""

import os
import shutil

import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

from data.imagenet_folder import make_folder
from data.small_part import ALL, GOOD, look, part, same, training, write
from mlaan.data import check, findings
from mlaan.data.check import check_part, open_part, read_list
from mlaan.data.findings import CRASHES
from mlaan.errors import UserError

__all__ = ["part"]

SAID = {
    "grey": "grey",
    "cmyk": "CMYK",
    "rotated": "turned by EXIF",
    "png": "not JPEG",
    "empty": "empty",
    "truncated": "truncated",
    "text": "no image",
    "one_pixel": "tiny",
}


@pytest.fixture
def looked_at(monkeypatch):
    """Paths that were handed to the decoders, the last two steps of each."""
    paths, real = [], check.in_order

    def recording(work, died, some, workers):
        some = list(some)
        paths.extend("/".join(path.split("/")[-2:]) for path in some)
        return real(work, died, some, workers)

    monkeypatch.setattr(check, "in_order", recording)
    return paths


def test_a_check_names_every_odd_and_bad_file_and_any_number_of_workers_finds_the_same(tmp_path):
    made = make_folder(tmp_path, classes=3, train=45, val=12, sides=(30, 90))
    parts = {}
    for workers in (1, 3):
        parts[workers] = check_part(tmp_path / "train", str(tmp_path), workers)
        parts[workers].place.unlink()
    part = parts[1]
    assert same(part, parts[3])
    kinds = {path: SAID.get(kind, "good") for path, kind in {**made.odd, **made.bad}.items()}
    expected = {path: kinds.get(path, "good") for path in (*made.good["train"], *made.bad) if path.startswith("train")}
    found = {path: kind for kind in part.counts() for path in part.paths(kind)}
    assert found == {str(tmp_path / path): kind for path, kind in expected.items()}
    assert sum(part.counts().values()) == len(expected) == 49
    images = [(path, label) for path, label in ImageFolder(str(tmp_path / "train")).samples if "bad_" not in path]
    files = part.files()
    assert [(files.path(i), int(files.labels[i])) for i in range(len(files))] == images
    assert part.classes == sorted(os.listdir(tmp_path / "train"))
    for i, (path, _) in enumerate(images):
        with Image.open(path) as image:
            assert tuple(files.sizes[i]) == image.size[::-1] == files.read(i).shape[:0:-1][::-1]


def test_training_leaves_the_bad_ones_out_and_says_how_many(part):
    assert training(part) == (
        ALL,
        f"{part} has not been checked for bad files: `mlaan data check {part.parent}` does it once",
    )
    (part / "cat/text.jpg").write_text("no picture")
    write(part / "cat/dot.jpg", 1, 1)
    write(part / "dog/dot.jpg", 1, 1)
    look(part)
    opened = open_part(part, str(part.parent))
    assert opened.note == (
        f"{part}: 4 of 10 files left out (2 tiny, 1 no image, 1 empty): `mlaan data check {part.parent}` names them"
    )
    bad = {"cat/text.jpg": "no image", "cat/dot.jpg": "tiny", "dog/dot.jpg": "tiny", "dog/empty.jpg": "empty"}
    assert opened.left_out == bad
    assert opened.files.names.tolist() == [name.encode() for name in GOOD]
    assert opened.files.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert opened.files.sizes.tolist() == [[8, 9]] * 6
    assert opened.classes == ["cat", "dog"]


def test_of_a_part_without_bad_files_there_is_nothing_to_say(part):
    (part / "dog/empty.jpg").unlink()
    look(part)
    assert training(part) == (GOOD, "")


def test_a_second_check_decodes_nothing(part, looked_at):
    told = []
    first = look(part, progress=lambda *numbers: told.append(numbers))
    assert sorted(looked_at) == ALL
    assert told == [(done, 7) for done in range(1, 8)]
    looked_at.clear()
    again = look(part, progress=lambda *numbers: told.append(numbers))
    assert looked_at == []
    assert len(told) == 7
    assert same(first, again)
    assert same(first, read_list(part))


def add(part):
    write(part / "cat/new.jpg")


def remove(part):
    (part / "cat/2.jpg").unlink()


def rename(part):
    (part / "cat/2.jpg").rename(part / "cat/two.jpg")


def swap(part):
    write(part / "cat/other", 20, 21)
    (part / "cat/other").replace(part / "cat/2.jpg")


def add_below(part):
    write(part / "cat/more/4.jpg")


def add_below_what_is_there(part):
    write(part / "dog/old/5.jpg")


def add_class(part):
    write(part / "ant/1.jpg")


def remove_class(part):
    shutil.rmtree(part / "cat")


@pytest.mark.parametrize(
    ("change", "new"),
    [
        (add, ["cat/new.jpg"]),
        (remove, []),
        (rename, ["cat/two.jpg"]),
        (swap, ["cat/2.jpg"]),
        (add_below, ["more/4.jpg"]),
        (add_below_what_is_there, ["old/5.jpg"]),
        (add_class, ["ant/1.jpg"]),
        (remove_class, []),
    ],
)
def test_a_changed_folder_makes_training_ignore_the_list_and_another_check_looks_at_what_is_new(
    part, looked_at, change, new
):
    (part / "dog/old").mkdir()
    look(part)
    looked_at.clear()
    change(part)
    names, note = training(part)
    assert note == f"{part} has changed since it was checked: `mlaan data check {part.parent}` looks at what is new"
    there = sorted(str(path.relative_to(part)) for path in part.rglob("*.jpg"))
    assert names == there
    checked = look(part)
    assert looked_at == new
    assert training(part)[0] == [name for name in there if name != "dog/empty.jpg"]
    checked.place.unlink()
    assert same(look(part), checked), "a check from the beginning finds the same"


def test_a_file_that_is_rewritten_in_its_place_is_looked_at_again(part, looked_at):
    """A folder does not change by that: as when a bad file is downloaded again, or a script makes images smaller."""
    before = look(part).times
    looked_at.clear()
    write(part / "dog/empty.jpg", 30, 40)
    write(part / "cat/2.jpg", 5, 6)
    assert look(part).times == before
    assert looked_at == ["cat/2.jpg", "dog/empty.jpg"]
    assert training(part) == (ALL, "")
    assert open_part(part, "").files.sizes.tolist() == [[8, 9], [5, 6], *[[8, 9]] * 4, [30, 40]]


@pytest.mark.parametrize("alike", ["length", "time"])
def test_a_file_of_another_content_is_looked_at_again_though_much_is_alike(part, alike):
    look(part)
    path = part / "cat/2.jpg"
    before = path.stat()
    path.write_bytes(bytes(before.st_size + (alike == "time")))
    if alike == "time":
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert look(part).paths("no image") == [str(path)]


def refuse():
    raise PermissionError


@pytest.mark.parametrize("kind", ["unreadable", CRASHES])
def test_what_may_pass_by_itself_is_looked_at_in_every_check(part, looked_at, monkeypatch, kind):
    """A file's rights may change, or a process may have been killed for want of memory, and the file is as it was."""
    name, fault = {"unreadable": ("open", refuse), CRASHES: ("decode", lambda: os._exit(3))}[kind]
    real = getattr(findings, name, open)
    with monkeypatch.context() as patched:
        patched.setattr(
            findings, name, lambda path, *rest: fault() if "cat/2" in path else real(path, *rest), raising=False
        )
        assert look(part).paths(kind) == [str(part / "cat/2.jpg")]
    assert training(part)[0] == [name for name in GOOD if name != "cat/2.jpg"]
    looked_at.clear()
    look(part)
    assert looked_at == ["cat/2.jpg"]
    assert training(part)[0] == GOOD


def test_links_that_lead_nowhere_are_named_and_what_they_lead_to_is_seen_later(part, tmp_path):
    (part / "cat/link.jpg").symlink_to(tmp_path / "elsewhere.jpg")
    assert look(part).paths("unreadable") == [str(part / "cat/link.jpg")]
    write(tmp_path / "elsewhere.jpg", 11, 12)
    checked = look(part)
    assert checked.paths("unreadable") == []
    assert [11, 12] in checked.sizes.tolist()


@pytest.mark.parametrize("moment", ["listing", "looking"])
def test_a_file_that_comes_during_a_check_is_not_forgotten(part, monkeypatch, moment):
    real = check.list_part
    with monkeypatch.context() as patched:
        if moment == "listing":
            patched.setattr(check, "list_part", lambda *which: (real(*which), add(part))[0])
        look(part, progress=lambda *_: add(part) if moment == "looking" else None)
    names, note = training(part)
    assert "has changed since it was checked" in note
    assert "cat/new.jpg" in names
    look(part)
    assert "cat/new.jpg" in training(part)[0]


def test_an_interrupted_check_keeps_what_it_found_and_goes_on(part, looked_at):
    def interrupt(done, count):
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        look(part, progress=interrupt)
    assert read_list(part) is None
    assert "has not been checked" in training(part)[1]
    looked_at.clear()
    told = []
    look(part, progress=lambda *numbers: told.append(numbers))
    assert looked_at == ALL[5:]
    assert told == [(6, 7), (7, 7)]
    assert training(part)[0] == GOOD


def test_a_check_that_is_killed_keeps_what_it_found_by_the_last_minute(part, looked_at, monkeypatch):
    class Killed(Exception):
        pass

    def kill(done, count):
        if done == 4:
            raise Killed

    monkeypatch.setattr(check, "_SAVE_SECONDS", -1)
    with pytest.raises(Killed):
        look(part, progress=kill)
    looked_at.clear()
    look(part)
    assert looked_at == ALL[3:]


def test_a_file_that_crashes_the_decoder_is_left_out_and_the_others_are_not(part, monkeypatch):
    real = findings.decode
    monkeypatch.setattr(findings, "decode", lambda path: os._exit(3) if path.endswith("cat/2.jpg") else real(path))
    checked = look(part)
    assert checked.paths("crashes the decoder") == [str(part / "cat/2.jpg")]
    assert training(part)[0] == [name for name in GOOD if name != "cat/2.jpg"]


@pytest.mark.parametrize("name", [b"with two  spaces", "Grüße 猫".encode(), b"caf\xe9", b'it\'s "quoted" $HOME', b"-n"])
def test_folders_and_files_may_have_any_name(tmp_path, name):
    root = tmp_path / os.fsdecode(name)
    path = root / "train" / os.fsdecode(name) / f"{os.fsdecode(name)}.JPEG"
    write(path)
    (path.parent / f"bad {path.name}").write_bytes(b"")
    checked = look(root / "train")
    assert (checked.paths("good"), checked.paths("empty")) == ([str(path)], [str(path.parent / f"bad {path.name}")])
    opened = open_part(root / "train", str(root))
    assert opened.classes == [os.fsdecode(name)]
    assert list(opened.left_out) == [f"{os.fsdecode(name)}/bad {path.name}"]
    assert opened.files.path(0) == str(path)
    assert opened.files.read(0).shape == (3, 8, 9)


def test_the_command_that_is_told_can_be_copied(tmp_path):
    write(tmp_path / "my images/train/cat/1.jpg")
    _, note = training(tmp_path / "my images/train")
    assert f"`mlaan data check '{tmp_path}/my images'`" in note


@pytest.mark.parametrize("what", ["nothing", "no class", "a file", "an empty class"])
def test_a_part_that_cannot_be_listed_is_one_line_that_names_it(tmp_path, what):
    part = tmp_path / "train"
    if what == "a file":
        part.write_text("")
    elif what != "nothing":
        part.mkdir()
    if what == "an empty class":
        write(part / "cat/1.jpg")
        (part / "dog").mkdir()
    for step in (look, training):
        with pytest.raises(UserError, match=rf"^data.root = '{tmp_path}'(: no file in | must hold train/<)") as caught:
            step(part)
        assert "\n" not in str(caught.value)
    assert "dog" in str(caught.value) or what != "an empty class"
    assert not part.is_dir() or not (part / ".mlaan-check.npz").exists()
