"""`mlaan data check`: what it prints of a folder, to people and to programs."""

import io
import json
import os
import shutil
import sys

import pytest

from data.small_part import write
from mlaan.cli import data_check, main


@pytest.fixture
def root(tmp_path):
    """Two classes; in train an empty file, a grey one and one of a single pixel."""
    root = tmp_path / "set"
    for name in ("train/cat/1.jpg", "train/cat/2.jpg", "train/dog/1.jpg", "val/cat/1.jpg", "val/dog/1.jpg"):
        write(root / name)
    (root / "train/cat/empty.jpg").write_bytes(b"")
    write(root / "train/dog/dot.jpg", 1, 1)
    write(root / "train/dog/grey.jpg", mode="L")
    return root


class Terminal(io.StringIO):
    def isatty(self):
        return True


def said(capsys, *words, status=0):
    """What is printed on stdout, or on stderr where the status isn't 0; the other stays empty."""
    assert main(["data", "check", *map(str, words), "--workers", "1"]) == status
    output = capsys.readouterr()
    assert (output.out if status else output.err) == ""
    return output.err if status else output.out


def test_a_table_counts_and_lines_name_what_is_bad_or_odd(root, capsys):
    expected = f"""\
       files  used  empty  tiny  grey
train      6     4      1     1     1
  val      2     2      0     0     0
left out, empty: {root}/train/cat/empty.jpg
left out, tiny: {root}/train/dog/dot.jpg
used, grey: {root}/train/dog/grey.jpg
list of train: {root}/train/.mlaan-check.npz
list of val: {root}/val/.mlaan-check.npz
"""
    assert said(capsys, root) == expected
    assert said(capsys, root) == expected, "a second time, from the list"


def test_json_names_everything(root, capsys):
    assert json.loads(said(capsys, root, "--json")) == [
        {
            "folder": f"{root}/train",
            "files": 6,
            "list": f"{root}/train/.mlaan-check.npz",
            "left_out": {"empty": [f"{root}/train/cat/empty.jpg"], "tiny": [f"{root}/train/dog/dot.jpg"]},
            "odd": {"grey": [f"{root}/train/dog/grey.jpg"]},
        },
        {"folder": f"{root}/val", "files": 2, "list": f"{root}/val/.mlaan-check.npz", "left_out": {}, "odd": {}},
    ]


def test_of_many_files_of_a_kind_the_first_are_named_but_by_json_all(root, capsys):
    for number in range(51):
        (root / f"val/cat/empty{number:02}.jpg").write_bytes(b"")
    for number in range(6):
        write(root / f"val/dog/grey{number}.jpg", mode="L")
    lines = said(capsys, root).splitlines()
    empty = [line for line in lines if line.startswith("left out, empty: ") and "/val/" in line]
    assert empty == [f"left out, empty: {root}/val/cat/empty{number:02}.jpg" for number in range(50)]
    assert lines.count("left out, empty: 1 more; --json names them all") == 1
    grey = [line for line in lines if line.startswith("used, grey: ") and "/val/" in line]
    assert grey == [f"used, grey: {root}/val/dog/grey{number}.jpg" for number in range(5)]
    assert lines.count("used, grey: 1 more; --json names them all") == 1
    [_, val] = json.loads(said(capsys, root, "--json"))
    assert [len(val["left_out"]["empty"]), len(val["odd"]["grey"])] == [51, 6]


def test_as_many_as_are_named_need_no_more(root, capsys, monkeypatch):
    monkeypatch.setattr(data_check, "NAMED", 1)
    monkeypatch.setattr(data_check, "_ODD_NAMED", 1)
    assert "more" not in said(capsys, root)


@pytest.mark.parametrize("way", ["by its name", "from within"])
def test_a_folder_of_class_folders_will_do(root, capsys, monkeypatch, way):
    monkeypatch.chdir(root / "val")
    lines = said(capsys, "." if way == "from within" else root / "val").splitlines()
    assert lines[1].split() == ["val", "2", "2"]
    assert lines[-1].startswith("list of val: ")
    assert (root / "val/.mlaan-check.npz").exists()


def test_what_is_packed_needs_none(root, tmp_path, capsys):
    assert main(["data", "pack", str(root), str(tmp_path / "packed"), "--workers", "1"]) == 0
    capsys.readouterr()
    packed = tmp_path / "packed"
    assert said(capsys, packed, status=2) == (
        f"mlaan: {packed} holds packed images or tar files, which need no check: train with --data.root {packed}\n"
    )


def test_a_folder_with_one_part_will_do(root, capsys):
    (root / "val").rename(root / "test")
    lines = said(capsys, root).splitlines()
    assert lines[-2:] == [
        f"list of train: {root}/train/.mlaan-check.npz",
        f"{root} holds train alone: training needs both train and val",
    ]


def test_classes_of_one_part_alone_are_told(root, capsys):
    (root / "train/cat").rename(root / "train/cats")
    start = f"data.root = '{root}': the class folder"
    end = "give both the same folders"
    assert said(capsys, root).splitlines()[-1] == f"{start} 'cat' is in val, but not in train: {end}"
    shutil.copytree(root / "val/cat", root / "train/cat")
    assert said(capsys, root).splitlines()[-1] == f"{start} 'cats' is in train, but not in val: {end}"


def test_a_folder_in_the_home_will_do(root, capsys, monkeypatch):
    monkeypatch.setenv("HOME", str(root.parent))
    assert said(capsys, "~/set").splitlines()[-1] == f"list of val: {root}/val/.mlaan-check.npz"


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("nowhere", "nowhere is no folder: name the one that holds train and val"),
        ("train/cat/1.jpg", "1.jpg is no folder: name the one that holds train and val"),
        ("train/cat", "must hold train/<class>/*.JPEG and val/<class>/*.JPEG, but "),
    ],
)
def test_what_cannot_be_checked_is_one_line(root, capsys, place, reason):
    error = said(capsys, root / place, status=2)
    assert error.startswith("mlaan: ")
    assert reason in error
    assert error.count("\n") == 1


def test_an_empty_class_folder_is_named(root, capsys):
    (root / "train/bird").mkdir()
    assert "bird" in said(capsys, root, status=2)


@pytest.mark.parametrize("words", [["--workers", "0"], ["--workers", "two"], ["--data.size", "32"], ["--jason"], []])
def test_wrong_words_are_one_line(root, capsys, words):
    assert main(["data", "check", *([str(root)] if words else []), *words]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.count("\n") == 1
    assert (words or ["DIR"])[0] in output.err


def test_a_name_that_is_no_text_is_shown_and_a_program_gets_it_whole(root, capsys):
    name = os.fsencode(root) + "/val/cat/Grüße ".encode() + b"\xe9.jpg"
    with open(name, "wb"):
        pass
    assert f"left out, empty: {root}/val/cat/Grüße \\xe9.jpg\n" in said(capsys, root)
    [_, val] = json.loads(said(capsys, root, "--json"))
    assert [os.fsencode(path) for path in val["left_out"]["empty"]] == [name]


def test_interrupted_it_says_so_and_goes_on_from_there(root, capsys, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(data_check.Progress, "__call__", lambda self, done, count: interrupt() if done == 4 else None)
        assert said(capsys, root, status=130) == "mlaan: stopped\n"
    told = []
    monkeypatch.setattr(data_check.Progress, "__call__", lambda self, *numbers: told.append(numbers))
    said(capsys, root)
    assert told == [(5, 6), (6, 6), (1, 2), (2, 2)]


def interrupt():
    raise KeyboardInterrupt


def test_a_full_disk_is_one_line_that_names_the_list(root, capsys, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("numpy.savez_compressed", full)
    error = said(capsys, root, status=2)
    assert f"{root}/train/.mlaan-check.npz: No space left on device: make room" in error
    assert error.count("\n") == 1


def test_on_a_terminal_a_line_counts_the_files(root, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert main(["data", "check", str(root), "--workers", "1"]) == 0
    shown = sys.stderr.getvalue()
    lines = [line.split("\r")[-1] for line in shown.split("\n")]
    assert [line.partition(" a second")[0].split(",")[0] for line in lines] == [
        f"{root}/train: 6 of 6",
        f"{root}/val: 2 of 2",
        "",
    ]
    sys.stderr.truncate(0)
    assert main(["data", "check", str(root), "--workers", "1"]) == 0
    assert sys.stderr.getvalue() == "", "there was nothing to do"


def test_progress_is_rare_and_its_rate_is_of_what_was_looked_at_now(monkeypatch):
    stderr, now = Terminal(), [100.0]
    monkeypatch.setattr(sys, "stderr", stderr)
    monkeypatch.setattr(data_check.time, "monotonic", lambda: now[0])
    progress = data_check.Progress("train")
    for done in range(5_001, 10_001):  # half of them are from an earlier check
        now[0] += 0.01
        progress(done, 10_000)
    lines = stderr.getvalue().split("\r")
    assert 200 <= len(lines) <= 260
    assert "train: 7,501 of 10,000, 100 a second, 0:25 left\x1b[K" in lines
    assert lines[1] == "train: 5,001 of 10,000, 0 a second, ? left\x1b[K"
    assert lines[-1] == "train: 10,000 of 10,000, 100 a second, 0:00 left\x1b[K\n"


def test_off_a_terminal_there_is_a_line_every_half_minute(monkeypatch):
    stderr, now = io.StringIO(), [100.0]
    monkeypatch.setattr(sys, "stderr", stderr)
    monkeypatch.setattr(data_check.time, "monotonic", lambda: now[0])
    progress = data_check.Progress("train")
    for done in range(1, 71):
        now[0] += 1
        progress(done, 70)
    lines = ["train: 30 of 70, 1 a second, 0:41 left", "train: 60 of 70, 1 a second, 0:10 left"]
    assert stderr.getvalue().splitlines() == lines
