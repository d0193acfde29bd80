"""`mlaan data pack` from a person's side."""

import json
import os
import re
import shutil
import signal
import sys
import time

import pytest

from data.imagenet_folder import make_folder
from data.packing import contents
from mlaan.cli import data_pack, main
from mlaan.data import pack as packer
from mlaan.data.files import decode
from mlaan.data.packed import PackedImages


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("set"), classes=2, train=8, val=4, sides=(30, 60))


def pack(made, out, *flags):
    return main(["data", "pack", str(made.root), str(out), "--workers", "1", *flags])


def refused(capsys, *words):
    assert main(["data", "pack", *map(str, words)]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert re.fullmatch(r"mlaan: .*\n", told.err), told.err
    return told.err.removeprefix("mlaan: ").rstrip("\n")


def test_it_says_what_it_wrote_what_it_left_out_and_how_to_go_on(made, tmp_path, capsys):
    assert pack(made, tmp_path) == 0
    lines = capsys.readouterr().out.splitlines()
    for part, count in (("train", 9), ("val", 5)):
        named = [line for line in lines if line.startswith(f"left out: {made.root}/{part}/")]
        bad = {path for path, kind in made.bad.items() if path.startswith(part) and kind != "one_pixel"}
        assert {line.split(" ")[2].removeprefix(f"{made.root}/") for line in named} == bad
        assert all(re.search(r" \(.+\)$", line) for line in named)
        assert f"{tmp_path}/{part}: {count} images, 0 MiB, 3 files left out" in lines
    assert lines[-1] == f"train from it with --data.name imagenet --data.root {tmp_path}"
    unchecked = [line for line in lines if "has not been checked for bad files" in line]
    assert len(unchecked) == 2, "there tiny images are packed, too"
    assert len(lines) == 2 * (1 + 3 + 1) + 1
    again = contents(tmp_path)
    assert pack(made, tmp_path) == 0
    assert capsys.readouterr().out.splitlines() == lines, "the same of a pack that is done"
    assert contents(tmp_path) == again


def test_classes_of_one_part_alone_are_told_before_any_work(made, tmp_path, capsys):
    shutil.copytree(made.root, tmp_path / "set")
    (tmp_path / "set/val/n01440764").rename(tmp_path / "set/val/n99999999")
    assert main(["data", "pack", str(tmp_path / "set"), str(tmp_path / "out"), "--workers", "1"]) == 2
    assert "the class folder 'n01440764' is in train, but not in val" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_among_the_images_is_refused(made, capsys):
    for out in "train", "val/n01440764":
        assert main(["data", "pack", str(made.root), str(made.root / out), "--workers", "1"]) == 2
        assert f"{made.root / out} lies among the images of {made.root}" in capsys.readouterr().err


def test_only_the_first_of_many_bad_files_are_named(made, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(data_pack, "NAMED", 2)
    assert pack(made, tmp_path) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith(f"left out: {made.root}/train/") for line in lines) == 2
    assert lines.count("left out: 1 more; `mlaan data check --json` names all") == 2


def test_the_words_of_the_command_reach_the_pack(made, tmp_path):
    flags = ("--size", "20", "--format", "uint8", "--quality", "70", "--shard-mb", "3")
    assert pack(made, tmp_path, *flags) == 0
    for part in "train", "val":
        held = json.loads((tmp_path / part / "pack.json").read_text())
        assert {key: held[key] for key in ("size", "form", "quality", "shard_bytes")} == {
            "size": 20,
            "form": "uint8",
            "quality": 70,
            "shard_bytes": 3 << 20,
        }
    images = PackedImages.open(tmp_path / "train")
    sides = {min(images.read(i).shape[1:]) for i in range(len(images))}
    assert sides == {1, 20}, "one image has a single pixel"
    sizes = sum(images.read(i).numel() for i in range(len(images)))
    assert (tmp_path / "train/shard-00000.bin").stat().st_size == sizes


def test_by_default_images_get_256_pixels_as_jpeg(made, tmp_path):
    assert pack(made, tmp_path) == 0
    held = json.loads((tmp_path / "train/pack.json").read_text())
    assert (held["size"], held["form"], held["quality"], held["shard_bytes"]) == (256, "jpeg", 90, 256 << 20)


@pytest.mark.parametrize("lacking", ["train", "val", "both"])
def test_a_folder_that_lacks_a_part_is_refused(made, tmp_path, capsys, lacking):
    root = tmp_path / "set"
    for part in {"train", "val"} - {lacking} if lacking != "both" else ():
        shutil.copytree(made.root / part, root / part)
    told = refused(capsys, root, tmp_path / "out")
    assert told == f"{root} must hold train and val, each with a folder of images per class"
    assert not (tmp_path / "out").exists()


def test_a_part_without_class_folders_is_refused(made, tmp_path, capsys):
    for part in "train", "val":
        (tmp_path / "set" / part).mkdir(parents=True)
    told = refused(capsys, tmp_path / "set", tmp_path / "out")
    assert told.startswith(f"data.root = '{tmp_path}/set' must hold train/<class>/*.JPEG")


@pytest.mark.parametrize(
    ("flag", "value", "told"),
    [
        ("--size", "0", "must be a whole number of at least 1"),
        ("--size", "-3", "must be a whole number of at least 1"),
        ("--size", "2.5", "must be a whole number of at least 1"),
        ("--shard-mb", "0", "must be a whole number of at least 1"),
        ("--workers", "0", "must be a whole number of at least 1"),
        ("--quality", "0", "must be a whole number of at least 1"),
        ("--quality", "101", "quality = 101 must be from 1 to 100"),
        ("--format", "png", "'png'"),
    ],
)
def test_values_out_of_range_are_refused_before_anything_is_written(made, tmp_path, capsys, flag, value, told):
    try:
        status = main(["data", "pack", str(made.root), str(tmp_path / "out"), flag, value])
    except SystemExit as stop:
        status = stop.code
    found = capsys.readouterr()
    assert (status, found.out) == (2, "")
    assert told in found.err
    assert "Traceback" not in found.err
    assert not (tmp_path / "out").exists()


def test_other_settings_for_the_same_folder_are_refused(made, tmp_path, capsys):
    assert pack(made, tmp_path) == 0
    capsys.readouterr()
    before = contents(tmp_path)
    told = refused(capsys, made.root, tmp_path, "--size", "40")
    assert told == f"{tmp_path}/train holds a pack with size = 256, this one has 40: give a new folder"
    assert contents(tmp_path) == before


def test_packing_a_folder_into_itself_is_refused(made, capsys):
    before = contents(made.root)
    assert refused(capsys, made.root, made.root) == (f"{made.root}/train holds other files: give a new or empty folder")
    assert contents(made.root) == before


def test_where_nothing_can_be_written(made, tmp_path, capsys):
    (tmp_path / "out").write_text("")
    told = refused(capsys, made.root, tmp_path / "out")
    assert told.startswith(f"cannot write into {tmp_path}/out/train: Not a directory: ")


def test_ctrl_c_ends_it_in_one_line_and_the_same_command_goes_on(made, tmp_path, monkeypatch):
    """The terminal sends it to the worker processes, too."""
    words = ["data", "pack", str(made.root), str(tmp_path / "out"), "--workers", "2"]
    ours, theirs = os.pipe()

    def slow(path):
        time.sleep(0.1)
        os.write(theirs, b".")
        return decode(path)

    monkeypatch.setattr(packer, "decode", slow)
    run = os.fork()
    if not run:
        status = 1
        try:
            os.setsid()
            signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
            sys.stderr = (tmp_path / "told").open("w")
            os.dup2(sys.stderr.fileno(), 2)
            status = main(words)
            sys.stderr.flush()
        finally:
            os._exit(status)
    assert os.read(ours, 1) == b"."
    os.killpg(run, signal.SIGINT)
    assert os.waitstatus_to_exitcode(os.waitpid(run, 0)[1]) == 130
    assert (tmp_path / "told").read_text() == "mlaan: stopped\n"
    monkeypatch.undo()
    assert main(words) == 0
    assert pack(made, tmp_path / "other") == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "other")
