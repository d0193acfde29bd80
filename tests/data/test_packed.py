"""Packed images: checksums, damaged shards and indices, many processes."""

import io
import os
import pickle
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch

from data.imagenet_folder import make_folder
from data.packing import contents, pack
from mlaan.data import ImageNet, loaders, packed
from mlaan.data.packed import Index, PackedImages
from mlaan.data.store import Unreadable
from mlaan.errors import UserError

IMAGES = 12
FORMS = ("jpeg", "uint8")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("set"), classes=2, train=IMAGES, val=6, bad=False, sides=(20, 50)).root


@pytest.fixture(scope="module")
def bytes_of(made, tmp_path_factory):
    """{form: {path: content}} of both parts, packed."""
    found = {}
    for form in FORMS:
        folder = tmp_path_factory.mktemp(form)
        for part in "train", "val":
            pack(made, folder, part=part, form=form)
        found[form] = contents(folder)
    return found


@pytest.fixture
def out(request, bytes_of, tmp_path):
    """A pack that may be spoilt: of JPEGs, or in the form that is asked for."""
    for name, content in bytes_of[getattr(request, "param", "jpeg")].items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    return tmp_path


both_forms = pytest.mark.parametrize("out", FORMS, indirect=True)


def flip(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def places(folder):
    """(shard, offset, length) of each image."""
    with np.load(folder / "index.npz") as index:
        shards = [folder / f"shard-{number:05d}.bin" for number in index["shards"]]
        return list(zip(shards, index["offsets"].tolist(), index["lengths"].tolist(), strict=True))


def rewritten(folder, **changes):
    """The index with other arrays in it, or without those that are None."""
    with np.load(folder / "index.npz") as index:
        arrays = {**index} | changes
    np.savez(folder / "index.npz", **{name: array for name, array in arrays.items() if array is not None})


def unreadable(images, number):
    with pytest.raises(Unreadable) as caught:
        images.read(number)
    assert caught.value.name == images.name(number)
    return caught.value.reason


def refused(folder):
    with pytest.raises(UserError) as caught:
        PackedImages.open(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def anew(folder):
    return f"delete {folder} and run `mlaan data pack` anew"


@both_forms
def test_an_image_with_a_flipped_bit_is_never_shown(out):
    whole = [PackedImages.open(out / "train").read(i).clone() for i in range(IMAGES)]
    spoilt = {2: 0, 5: -1, 9: 7}
    for number, place in spoilt.items():
        shard, offset, length = places(out / "train")[number]
        flip(shard, offset + place % length)
    images = PackedImages.open(out / "train")
    for _ in "first", "second":
        for number in range(IMAGES):
            if number in spoilt:
                assert unreadable(images, number) == "its checksum does not fit"
            else:
                assert torch.equal(images.read(number), whole[number])


@both_forms
@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_leaves_an_image_with_a_flipped_bit_out_and_names_it(out, workers):
    shard, offset, length = places(out / "val")[3]
    flip(shard, offset + length // 2)
    found = loaders(ImageNet(root=str(out), classes=2, size=16, batch=3, workers=workers), "cpu", 0)
    said = []
    found.test.say = said.append
    assert found.notes == ("data.backend = 'auto': packed, as data.root holds packed images or tar files",)
    batches = [labels.tolist() for _, labels in found.test]
    expected = PackedImages.open(out / "val").labels.tolist()
    assert batches == [expected[:3], expected[4:]]
    name = PackedImages.open(out / "val").name(3)
    assert [line for line in said if name in line and "its checksum does not fit" in line] == said
    assert len(said) == 1


@both_forms
def test_a_checksum_is_looked_at_once(out, monkeypatch):
    images, seen, real = PackedImages.open(out / "train"), [], packed.checksum
    monkeypatch.setattr(packed, "checksum", lambda record: seen.append(len(record)) or real(record))
    for _ in range(2):
        for number in range(IMAGES):
            images.read(number)
    assert seen == [length for _, _, length in places(out / "train")]


def test_processes_share_what_they_have_looked_at(out, monkeypatch):
    images = PackedImages.open(out / "train")
    with ProcessPoolExecutor(1, mp_context=get_context("fork"), initializer=_hold, initargs=(images,)) as pool:
        pool.submit(_read_held, 4).result()
    monkeypatch.setattr(packed, "checksum", None)
    images.read(4)
    with pytest.raises(TypeError):
        images.read(5)


_held: PackedImages


def _hold(images):
    global _held
    _held = images


def _read_held(number):
    _held.read(number)


@both_forms
@pytest.mark.parametrize("fault", ["missing", "empty", "cut"])
def test_a_shard_that_is_missing_or_cut_short_is_told_at_opening(out, fault):
    shard = out / "train/shard-00001.bin"
    content = shard.read_bytes()
    shard.unlink()
    if fault != "missing":
        shard.write_bytes(content[:-1] if fault == "cut" else b"")
    assert refused(out / "train") == f"{shard} is missing or cut short: copy it anew, or {anew(out / 'train')}"


@both_forms
def test_a_shard_that_goes_after_opening_makes_its_images_unreadable(out):
    shards = sorted((out / "train").glob("*.bin"))
    images = PackedImages.open(out / "train")
    shards[0].unlink()
    os.truncate(shards[1], 10)
    os.truncate(shards[2], 0)
    reasons = {shard: set() for shard in shards}
    for number, (shard, _, _) in enumerate(places(out / "train")):
        if shard in shards[:3]:
            reasons[shard].add(unreadable(images, number))
        else:
            images.read(number)
    assert all(reasons[shard] for shard in shards[:3])
    assert all("No such file" in reason for reason in reasons[shards[0]])
    assert all(f"{shards[1]} ends before byte" in reason for reason in reasons[shards[1]])
    assert reasons[shards[2]] == {"cannot mmap an empty file"}


def test_a_damaged_index_is_refused_wherever_the_damage_is(out):
    place = out / "train/index.npz"
    content, whole = place.read_bytes(), PackedImages.open(out / "train")
    known = (whole.fingerprint(), whole.classes, whole.left_out, places(out / "train"))
    told = []
    for number in range(0, len(content), 11):
        for bit in 1, 128:
            spoilt = bytearray(content)
            spoilt[number] ^= bit
            place.write_bytes(spoilt)
            try:
                images = PackedImages.open(out / "train")
            except UserError as error:
                told.append(str(error))
            else:  # a byte that says nothing, such as the date of an entry
                assert known == (images.fingerprint(), images.classes, images.left_out, places(out / "train"))
    assert len(told) > 0.7 * 2 * len(content) / 11
    for message in told:
        assert message.startswith(f"{place} is damaged (")
        assert message.endswith(anew(out / "train"))


def test_an_index_that_is_cut_short_or_something_else_is_refused(out):
    place = out / "train/index.npz"
    content, array = place.read_bytes(), io.BytesIO()
    np.save(array, np.zeros(3))
    lengths = [0, 1, 10, len(content) // 2, len(content) - 1]
    for spoilt in (*(content[:length] for length in lengths), b"text" * 100, array.getvalue(), pickle.dumps([1])):
        place.write_bytes(spoilt)
        message = refused(out / "train")
        assert message.startswith(f"{place} is damaged (")
        assert message.endswith(f"): {anew(out / 'train')}")
    place.unlink()
    assert refused(out / "train") == f"{out}/train holds no packed images: run `mlaan data pack` to its end"


@pytest.mark.parametrize("lacks", [None, "names"])
def test_an_index_of_another_version_is_refused(out, lacks):
    rewritten(out / "train", version=np.array(7), **({lacks: None} if lacks else {}))
    assert refused(out / "train") == (
        f"{out}/train/index.npz has version 7, this mlaan reads {packed.VERSION}: {anew(out / 'train')}"
    )


@pytest.mark.parametrize("name", sorted({*Index._fields} - {"version"}))
def test_an_index_that_lacks_something_is_refused(out, name):
    rewritten(out / "train", **{name: None})
    message = refused(out / "train")
    assert f"index.npz is damaged ('{name} is not a file in the archive')" in message


@both_forms
def test_pickled_images_are_the_same(out):
    images = PackedImages.open(out / "train")
    images.read(0)
    again = pickle.loads(pickle.dumps(images))
    assert (len(again), again.classes, again.note) == (len(images), images.classes, images.note)
    assert again.fingerprint() == images.fingerprint()
    for number in range(IMAGES):
        assert torch.equal(again.read(number), images.read(number))
        assert again.name(number) == images.name(number)


def _sums(folder: Path) -> list[int]:
    images = PackedImages.open(folder)
    return [int(images.read(i).long().sum()) for i in range(len(images))]


def test_several_processes_open_the_same_pack(out):
    with ProcessPoolExecutor(3, mp_context=get_context("fork")) as pool:
        found = list(pool.map(_sums, [out / "train"] * 6))
    assert found == [_sums(out / "train")] * 6


@both_forms
def test_batches_do_not_depend_on_the_number_of_workers(out):
    def gather(workers):
        _, train, test = loaders(ImageNet(root=str(out), classes=2, size=16, batch=4, workers=workers), "cpu", 3)
        images, labels = zip(*train, *test, strict=True)
        return torch.cat(images), torch.cat(labels)

    alone = gather(0)
    for found, expected in zip(gather(2), alone, strict=True):
        assert torch.equal(found, expected)


def test_what_is_done_to_an_image_does_not_reach_the_disk(bytes_of, tmp_path, made):
    pack(made, tmp_path, form="uint8")
    before = contents(tmp_path)
    PackedImages.open(tmp_path / "train").read(0).zero_()
    assert contents(tmp_path) == before
    assert int(PackedImages.open(tmp_path / "train").read(0).sum()) > 0


def test_the_fingerprint_changes_with_labels_order_names_and_content(out):
    def fingerprint(**changes):
        before = (out / "train/index.npz").read_bytes()
        rewritten(out / "train", **changes)
        found = PackedImages.open(out / "train").fingerprint()
        (out / "train/index.npz").write_bytes(before)
        return found

    with np.load(out / "train/index.npz") as content:
        index = {**content}
    order = np.r_[1, 0, 2:IMAGES]
    per_image = ("shards", "offsets", "lengths", "heights", "widths", "labels", "names", "checksums")
    assert fingerprint() == fingerprint(), "the same for the same"
    found = [
        fingerprint(),
        fingerprint(labels=index["labels"][::-1]),
        fingerprint(**{name: index[name][order] for name in per_image}),
        fingerprint(names=np.char.replace(index["names"], b"_0.", b"_x.")),
        fingerprint(checksums=index["checksums"] ^ np.uint32(1)),
    ]
    assert len({*found}) == len(found)


def test_a_shard_without_images_does_no_harm(tmp_path):
    """It comes where all files after the last full shard are bad."""
    root = make_folder(tmp_path / "set", classes=1, train=2, val=1, bad=False, sides=(20, 30)).root
    next((root / "train").iterdir()).joinpath("z.JPEG").write_bytes(b"")
    assert list(pack(root, tmp_path / "out", shard_bytes=1).left_out) == ["n01440764/z.JPEG"]
    assert [path.stat().st_size > 0 for path in sorted((tmp_path / "out/train").glob("*.bin"))] == [True, True, False]
    images = PackedImages.open(tmp_path / "out/train")
    assert [images.read(i).ndim for i in range(len(images))] == [3, 3]
