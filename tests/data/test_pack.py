"""What `mlaan data pack` makes of a folder: pixels, labels, shards, files that are left out; what it refuses."""

import hashlib
import os
import shutil
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import Resize

from data.imagenet_folder import BAD, make_folder
from data.official_files import smooth
from data.packing import SETTINGS, contents, pack
from mlaan.data import decoders
from mlaan.data import pack as packer
from mlaan.data.check import check_part, open_part
from mlaan.data.files import decode
from mlaan.data.packed import PackedImages
from mlaan.errors import UserError

KINDS = ("colour", "grey", "cmyk", "turned", "progressive", "png", "deep png")
SMALL, LARGE = (21, 40), (50, 75)
"""Beside a shorter side of 32: one to be kept, though its longer side is above, and one to be resized."""


def write(path, kind, size, random):
    image = Image.fromarray(smooth(*size, random))
    if kind == "deep png":
        Image.fromarray((smooth(*size, random)[..., 0].astype(np.uint16) << 8) + 200).save(path, "PNG")
    elif kind == "png":
        image.save(path, "PNG")
    else:
        exif = Image.Exif()
        exif[0x0112] = 6 if kind == "turned" else 1
        mode = {"grey": "L", "cmyk": "CMYK"}.get(kind, "RGB")
        image.convert(mode).save(path, "JPEG", quality=90, exif=exif, progressive=kind == "progressive")


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """Every kind of image, once smaller than what is packed and once larger."""
    root = tmp_path_factory.mktemp("odd")
    random = np.random.RandomState(0)
    for name, size in (("large", LARGE), ("small", SMALL)):
        (root / "train" / name).mkdir(parents=True)
        for kind in KINDS:
            write(root / "train" / name / f"{kind}.JPEG", kind, size, random)
    return root


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with images that cannot be used, not checked."""
    return make_folder(tmp_path_factory.mktemp("made"), classes=3, train=20, val=6, sides=(20, 60))


def opened(root, part="train"):
    return open_part(root / part, str(root))


def shown(root, size):
    """What the file backend shows of each image, in the size of a pack."""
    files = opened(root).files
    images = [files.read(i) for i in range(len(files))]
    return [Resize(size, antialias=True)(image) if min(image.shape[1:]) > size else image for image in images]


def distance(one, other):
    return (one.float() - other.float()).abs().mean()


def test_raw_pixels_are_the_decoded_and_resized_images_exactly(odd, tmp_path):
    pack(odd, tmp_path, form="uint8")
    packed, expected = PackedImages.open(tmp_path / "train"), shown(odd, 32)
    assert len(packed) == len(expected) == 2 * len(KINDS)
    for i, image in enumerate(expected):
        assert torch.equal(packed.read(i), image), packed.name(i)
    assert {image.shape[1:] for image in expected} == {(32, 48), SMALL}


def test_jpegs_are_nearly_the_decoded_and_resized_images(odd, tmp_path):
    pack(odd, tmp_path)
    packed, expected = PackedImages.open(tmp_path / "train"), shown(odd, 32)
    assert len(packed) == len(expected) == 2 * len(KINDS)
    for i, image in enumerate(expected):
        found = packed.read(i)
        assert (found.dtype, found.shape) == (torch.uint8, image.shape)
        assert distance(found, image) < 2, packed.name(i)
        assert distance(found.flip(2), image) > 10, "this would not see another image"


def test_a_jpeg_that_is_small_already_is_copied_byte_for_byte(odd, tmp_path):
    pack(odd, tmp_path)
    shards = [path.read_bytes() for path in sorted((tmp_path / "train").glob("*.bin"))]
    folder = odd / "train"
    found = {
        str(path.relative_to(folder)) for path in folder.rglob("*.JPEG") if any(path.read_bytes() in x for x in shards)
    }
    assert found == {f"small/{kind}.JPEG" for kind in KINDS if "png" not in kind}


def test_the_quality_of_the_jpegs_can_be_chosen(odd, tmp_path):
    sizes = [pack(odd, tmp_path / str(quality), quality=quality).size for quality in (20, 95)]
    assert sizes[0] < sizes[1]


@pytest.mark.parametrize("part", ["train", "val"])
def test_labels_classes_and_order_are_those_of_the_files(made, tmp_path, part):
    told = pack(made.root, tmp_path, part=part)
    expected, packed = opened(made.root, part), PackedImages.open(tmp_path / part)
    left_out = {path.removeprefix(f"{part}/"): kind for path, kind in made.bad.items() if path.startswith(part)}
    tiny = next(path for path, kind in left_out.items() if kind == "one_pixel")
    del left_out[tiny]  # only a check leaves out what can be decoded
    numbers = [i for i, name in enumerate(expected.files.names) if os.fsdecode(bytes(name)) not in left_out]
    assert packed.classes == expected.classes
    assert torch.equal(packed.labels, expected.files.labels[numbers])
    assert [packed.name(i) for i in range(len(packed))] == [
        f"{os.fsdecode(bytes(expected.files.names[i]))} in {tmp_path / part}" for i in numbers
    ]
    assert told.images == len(packed) == len(made.good[part]) + 1
    assert told.left_out.keys() == left_out.keys()
    assert all(reason and "\n" not in reason for reason in told.left_out.values())
    assert len(set(told.left_out.values())) == 3, "each has a reason of its own"
    assert told.left_out == packed.left_out
    assert packed.note == f"{tmp_path / part}: 3 files were left out when it was packed"


def test_of_a_checked_folder_the_kinds_of_its_bad_files_are_named(made, tmp_path):
    shutil.copytree(made.root, tmp_path / "set")
    check_part(tmp_path / "set/train", str(tmp_path / "set"), workers=1)
    told = pack(tmp_path / "set", tmp_path / "out")
    expected = opened(tmp_path / "set")
    packed = PackedImages.open(tmp_path / "out/train")
    assert told.left_out == packed.left_out == expected.left_out
    assert sorted(told.left_out.values()) == ["empty", "no image", "tiny", "truncated"]
    assert told.images == len(packed) == len(made.good["train"])
    assert torch.equal(packed.labels, expected.files.labels)
    assert packed.note == f"{tmp_path / 'out/train'}: {len(BAD)} files were left out when it was packed"


def test_names_that_are_not_utf_8(tmp_path):
    make_folder(tmp_path / "set", classes=2, train=4, val=2, bad=False)
    folder = os.fsencode(tmp_path / "set/train")
    os.rename(folder + b"/n02102040", folder + b"/caf\xe9")
    with open(folder + b"/caf\xe9/b\xe9d.JPEG", "wb") as file:
        file.write(b"no image")
    told = pack(tmp_path / "set", tmp_path / "out")
    packed = PackedImages.open(tmp_path / "out/train")
    assert packed.classes == opened(tmp_path / "set").classes
    assert len(packed.classes) == 2
    assert (told.images, list(told.left_out)) == (4, ["caf\N{REPLACEMENT CHARACTER}/b\N{REPLACEMENT CHARACTER}d.JPEG"])


def test_an_image_too_long_for_jpeg_is_left_out(odd, tmp_path):
    shutil.copytree(odd, tmp_path / "set")
    Image.new("RGB", (66_000, 4)).save(tmp_path / "set/train/small/long.png")
    told = pack(tmp_path / "set", tmp_path / "jpeg")
    assert list(told.left_out) == ["small/long.png"]
    assert "65500" in told.left_out["small/long.png"]
    assert pack(tmp_path / "set", tmp_path / "uint8", form="uint8").left_out == {}


def test_a_file_that_kills_the_decoder_is_left_out_and_no_other(made, tmp_path, monkeypatch):
    files = opened(made.root).files
    deadly = {files.path(3), files.path(8)}
    monkeypatch.setattr(
        packer, "decode", lambda path: os.kill(os.getpid(), signal.SIGKILL) if path in deadly else decode(path)
    )
    monkeypatch.setattr(decoders, "_CHUNK", 4)
    told = pack(made.root, tmp_path, form="uint8")
    packed = PackedImages.open(tmp_path / "train")
    died = {name for name, reason in told.left_out.items() if reason == "crashes the decoder"}
    assert {str(made.root / "train" / name) for name in died} == deadly
    names = [os.fsdecode(bytes(name)) for name in files.names]
    assert [packed.name(i).split(" in ")[0] for i in range(len(packed))] == [
        name for name in names if name not in told.left_out
    ]
    assert len(told.left_out) == 2 + 3


def test_a_file_that_goes_while_it_is_packed_is_left_out(odd, tmp_path, monkeypatch):
    shutil.copytree(odd, tmp_path / "set")
    gone = tmp_path / "set/train/small/grey.JPEG"

    def decode_and_lose(path):
        image = decode(path)
        gone.unlink(missing_ok=True)
        return image

    monkeypatch.setattr(packer, "decode", lambda path: (decode_and_lose if path == str(gone) else decode)(path))
    assert list(pack(tmp_path / "set", tmp_path / "out").left_out) == ["small/grey.JPEG"]


@pytest.mark.parametrize("form", ["jpeg", "uint8"])
def test_any_number_of_workers_writes_the_same_bytes(made, tmp_path, monkeypatch, form):
    monkeypatch.setattr(decoders, "_CHUNK", 2)
    for workers in 1, 3:
        pack(made.root, tmp_path / str(workers), workers=workers, form=form)
    assert contents(tmp_path / "1") == contents(tmp_path / "3") != {}


@pytest.mark.parametrize("form", ["jpeg", "uint8"])
def test_shards_are_filled_in_order_and_their_digests_kept(odd, tmp_path, form):
    told = pack(odd, tmp_path, form=form)
    shards = sorted((tmp_path / "train").glob("*.bin"))
    sizes = [path.stat().st_size for path in shards]
    with np.load(tmp_path / "train/index.npz") as index:
        assert index["digests"].tolist() == [hashlib.sha256(path.read_bytes()).hexdigest().encode() for path in shards]
        held = [index["lengths"][index["shards"] == i].tolist() for i in range(len(shards))]
    assert len(shards) >= 3
    assert [sum(lengths) for lengths in held] == sizes
    assert all(sum(lengths) >= SETTINGS.shard_bytes > sum(lengths[:-1]) for lengths in held[:-1])
    assert told.size == sum(sizes)
    assert sorted(path.name for path in (tmp_path / "train").iterdir()) == [
        "index.npz",
        "pack.json",
        *(path.name for path in shards),
    ]


def test_progress_counts_every_file_also_those_left_out(made, tmp_path):
    seen = []
    pack(made.root, tmp_path, progress=lambda done, count: seen.append((done, count)))
    assert seen == [(i, 24) for i in range(1, 25)]


def test_a_pack_that_is_done_is_left_as_it_is(made, tmp_path, monkeypatch):
    told = pack(made.root, tmp_path)
    before = contents(tmp_path)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*")}
    monkeypatch.setattr(packer, "in_order", None)
    assert pack(made.root, tmp_path) == told
    assert contents(tmp_path) == before
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*")} == times


def refused(*arguments, **changes):
    with pytest.raises(UserError) as caught:
        pack(*arguments, **changes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("is_done", [True, False])
@pytest.mark.parametrize(
    ("key", "value"), [("size", 31), ("form", "uint8"), ("quality", 94), ("shard_bytes", 5000), ("version", 2)]
)
def test_other_settings_in_the_same_folder_are_refused(odd, tmp_path, monkeypatch, key, value, is_done):
    out = tmp_path / "train"
    pack(odd, tmp_path)
    if not is_done:
        (out / "index.npz").unlink()
    before = contents(out)
    earlier = 1
    if key == "version":
        monkeypatch.setattr(packer, "VERSION", value)
        message = refused(odd, tmp_path)
    else:
        earlier = getattr(SETTINGS, key)
        message = refused(odd, tmp_path, **{key: value})
    assert message == f"{out} holds a pack with {key} = {earlier}, this one has {value}: give a new folder"
    assert contents(out) == before


def test_another_folder_into_the_same_one_is_refused(odd, tmp_path):
    out, other = tmp_path / "out", tmp_path / "other"
    pack(odd, out)
    before = contents(out)
    shutil.copytree(odd, other)
    assert pack(other, out).images == 2 * len(KINDS), "a folder that was moved is the same"
    (other / "train/small/more.JPEG").write_bytes((other / "train/small/grey.JPEG").read_bytes())
    message = refused(other, out)
    assert message == f"{out}/train holds a pack with images = 14, this one has 15: give a new folder"
    (other / "train/small/grey.JPEG").unlink()
    message = refused(other, out)
    assert f"{out}/train holds a pack with fingerprint = " in message
    shutil.rmtree(other)
    shutil.copytree(odd, other)
    write(other / "train/small/grey.JPEG", "grey", (22, 30), np.random.RandomState(1))
    size = sum(path.stat().st_size for path in odd.rglob("*.JPEG"))
    message = refused(other, out)
    assert f"{out}/train holds a pack with source_bytes = {size}, this one has " in message, "same names, other images"
    assert contents(out) == before


def test_a_folder_with_other_files_is_refused_and_stays(odd, tmp_path):
    out = tmp_path / "train"
    out.mkdir()
    for name in ("notes.txt", "index.npz", ".hidden.tmp"):
        (out / name).write_text("mine")
        assert refused(odd, tmp_path) == f"{out} holds other files: give a new or empty folder"
        assert contents(out) == {name: b"mine"}
        (out / name).unlink()
    assert refused(odd, odd) == f"{odd}/train holds other files: give a new or empty folder"
    (out / "pack.json").write_text("mine")
    assert refused(odd, tmp_path) == f"{out}/pack.json is damaged: give a new folder"
    assert contents(out) == {"pack.json": b"mine"}


def test_a_place_that_cannot_be_written_is_refused(odd, tmp_path):
    (tmp_path / "train").write_text("a file")
    message = refused(odd, tmp_path)
    assert message.startswith(f"cannot write into {tmp_path}/train: File exists: ")
    assert "give another folder" in message


@pytest.mark.parametrize("fault", ["index", "shard"])
def test_a_pack_that_was_damaged_is_not_taken_for_done(odd, tmp_path, fault):
    pack(odd, tmp_path)
    before = contents(tmp_path)
    place = tmp_path / "train" / {"index": "index.npz", "shard": "shard-00001.bin"}[fault]
    place.write_bytes(place.read_bytes()[:100])
    message = refused(odd, tmp_path)
    assert message.startswith(str(place))
    assert message.endswith(f"delete {tmp_path}/train and run `mlaan data pack` anew")
    shutil.rmtree(tmp_path / "train")
    pack(odd, tmp_path)
    assert contents(tmp_path) == before


def test_a_folder_without_a_single_image_is_refused(tmp_path):
    make_folder(tmp_path / "set", classes=1, train=1, val=1)
    next((tmp_path / "set/train").rglob("*_0.JPEG")).unlink()
    next((tmp_path / "set/train").rglob("*one_pixel.JPEG")).unlink()
    message = refused(tmp_path / "set", tmp_path / "out")
    assert message == f"{tmp_path}/set/train holds no image that can be used: see `mlaan data check`"


@pytest.mark.parametrize(("key", "value"), [("size", 0), ("quality", 0), ("quality", 101)])
def test_settings_out_of_range_are_refused(key, value):
    with pytest.raises(UserError, match=f"{key} = {value} must be "):
        replace(SETTINGS, **{key: value})
