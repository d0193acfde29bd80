"""Images in tar files: what is found in them, where they may lie, and what a person is told."""

import gzip
import io
import json
import pickle
import tarfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data.imagenet_folder import make_folder
from data.official_files import smooth
from data.tars import encoded, samples, write_tar
from mlaan.data import ImageNet, loaders
from mlaan.data.files import decode
from mlaan.data.store import Unreadable
from mlaan.data.tar import TarImages, has_tars
from mlaan.errors import UserError


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """Where the lists of tar files are kept."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder / "mlaan"


def opened(root, members=None, part="train"):
    if members is not None:
        write_tar(root / part / "0.tar", members)
    return TarImages.open(root, part)


def names(images):
    return [images.name(i).split(" in ")[0] for i in range(len(images))]


def refused(root, part="train"):
    with pytest.raises(UserError) as caught:
        TarImages.open(root, part)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_images_are_the_files_pixel_by_pixel(tmp_path):
    deep = io.BytesIO()
    levels = smooth(20, 30, np.random.RandomState(9))[..., 0].astype(np.uint16) << 8
    Image.fromarray(levels).save(deep, "PNG")
    files = {
        "colour.jpg": encoded(0),
        "grey.jpeg": encoded(1, mode="L"),
        "cmyk.JPEG": encoded(2, mode="CMYK"),
        "see.png": encoded(3, "PNG"),
        "through.png": encoded(4, "PNG", mode="RGBA"),
        "deep.png": deep.getvalue(),
    }
    images = opened(tmp_path, files | {f"{name.split('.')[0]}.cls": "1" for name in files})
    assert names(images) == [*files]
    for number, (name, content) in enumerate(files.items()):
        (tmp_path / name).write_bytes(content)
        found = images.read(number)
        assert (found.dtype, found.shape) == (torch.uint8, (3, 20, 30))
        assert torch.equal(found, decode(str(tmp_path / name)))
        assert images.name(number) == f"{name} in {tmp_path}/train/0.tar"
    assert images.note == ""


def test_classes_are_told_by_cls_or_json(tmp_path):
    members: dict[str, bytes | str] = {
        "a.jpg": encoded(0),
        "a.cls": "4\n",
        "b.json": json.dumps({"label": 2, "width": 30}),
        "b.jpg": encoded(1),
        "c.json": json.dumps({"label": 3}),
        "c.cls": "1",
        "c.jpg": encoded(2),
        "d.cls": " 0 ",
        "d.jpg": encoded(3),
        "d.json": json.dumps({"label": 3}),
        "e.txt": "a dog",
        "e.jpg": encoded(4),
        "e.json": json.dumps({"label": "n0144", "caption": "a dog"}),
        "e.cls": "3",
    }
    images = opened(tmp_path, members)
    assert dict(zip(names(images), images.labels.tolist(), strict=True)) == {
        "a.jpg": 4,
        "b.jpg": 2,
        "c.jpg": 1,
        "d.jpg": 0,
        "e.jpg": 3,
    }
    assert images.labels.dtype == torch.int64
    assert images.classes == ["0", "1", "2", "3", "4"]
    assert images.note == ""


@pytest.mark.parametrize("content", ["", "dog", "-1", "1.0", "99999999999999999999", "9" * 5000, str(1 << 20), b"\xff"])
def test_what_is_no_class_leaves_its_image_out(tmp_path, content):
    images = opened(tmp_path, samples([0, 1]) | {"x.jpg": encoded(3), "x.cls": content})
    assert images.labels.tolist() == [0, 1]
    assert images.classes == ["0", "1"]
    assert images.note == f"{tmp_path}/train/0.tar: 1 images without a class are left out"


@pytest.mark.parametrize("label", ["3", 1.0, True, None, [2], -1, 10**30, 1 << 40])
def test_what_is_no_class_in_json_leaves_its_image_out(tmp_path, label):
    images = opened(tmp_path, samples([0, 1]) | {"x.jpg": encoded(3), "x.json": json.dumps({"label": label})})
    assert images.labels.tolist() == [0, 1]
    assert images.note == f"{tmp_path}/train/0.tar: 1 images without a class are left out"


@pytest.mark.parametrize("content", ["", "[1]", "3", "{}", "{", "[" * 100_000])
def test_json_that_holds_no_label_leaves_its_image_out(tmp_path, content):
    images = opened(tmp_path, samples([0, 1]) | {"x.jpg": encoded(3), "x.json": content})
    assert images.labels.tolist() == [0, 1]
    assert images.note == f"{tmp_path}/train/0.tar: 1 images without a class are left out"


def test_members_that_lack_a_partner_are_counted(tmp_path):
    members = samples([0, 1, 2, 1]) | {"x.webp": encoded(3, "WEBP"), "x.cls": "1", "info.json": '{"version": 3}'}
    del members["000001.cls"], members["000002.jpg"], members["000003.cls"]
    images = opened(tmp_path, members)
    assert images.labels.tolist() == [0]
    place = f"{tmp_path}/train/0.tar"
    assert images.note == (
        f"{place}: 2 images without a class are left out; "
        f"{place}: 2 classes without an image (.jpg, .jpeg or .png) are left out"
    )


def test_members_in_folders_keep_to_their_own(tmp_path):
    members = {"a.b/": ""} | samples([1], folder="./a.b/") | samples([2], folder="./c/") | samples([0])
    images = opened(tmp_path, members)
    assert names(images) == ["./a.b/000000.jpg", "./c/000000.jpg", "000000.jpg"]
    assert images.labels.tolist() == [1, 2, 0]
    assert images.note == ""


@pytest.mark.parametrize("kind", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_long_names_and_those_of_other_alphabets(tmp_path, kind):
    folder = "long" * 20 + "/" + "longer" * 10 + "/"
    members = samples([0, 1], folder=folder)
    members |= {f"{folder}caf\udce9.jpg": encoded(7), f"{folder}caf\udce9.cls": "1"}
    members |= {f"{folder}Ωμέγα.jpg": encoded(8), f"{folder}Ωμέγα.cls": "0"}
    write_tar(tmp_path / "train/0.tar", members, kind)
    for _ in "listed", "from the list that is kept":
        images = opened(tmp_path)
        assert images.labels.tolist() == [0, 1, 1, 0]
        assert names(images)[:2] == [f"{folder}00000{i}.jpg" for i in range(2)]
        assert names(images)[2:] == [f"{folder}caf\N{REPLACEMENT CHARACTER}.jpg", f"{folder}Ωμέγα.jpg"]
        for number, seed in enumerate((0, 1, 7, 8)):
            (tmp_path / "one.jpg").write_bytes(encoded(seed))
            assert torch.equal(images.read(number), decode(str(tmp_path / "one.jpg")))
        assert images.note == ""


def test_many_shards_are_read_in_the_order_of_their_names(tmp_path):
    for number in (3, 0, 11, 2):
        labels = [number % 4, (number + 1) % 4]
        write_tar(tmp_path / f"train/set-{number:06d}.tar", samples(labels, 10 * number))
    images = opened(tmp_path)
    assert images.labels.tolist() == [0, 1, 2, 3, 3, 0, 3, 0]
    assert names(images) == [f"{number:06d}.jpg" for number in (0, 1, 20, 21, 30, 31, 110, 111)]
    for number, seed in enumerate((0, 1, 20, 21, 30, 31, 110, 111)):
        (tmp_path / "one.jpg").write_bytes(encoded(seed))
        assert torch.equal(images.read(number), decode(str(tmp_path / "one.jpg")))


def test_the_same_keys_in_several_shards_are_different_images(tmp_path):
    write_tar(tmp_path / "train/0.tar", samples([1, 2]))
    write_tar(tmp_path / "train/1.tar", samples([0, 3]))
    assert opened(tmp_path).labels.tolist() == [1, 2, 0, 3]


def test_both_layouts(tmp_path):
    write_tar(tmp_path / "folders/train/0.tar", samples([0, 1]))
    write_tar(tmp_path / "folders/val/0.tar", samples([1]))
    write_tar(tmp_path / "flat/imagenet-train-0.tar", samples([0]))
    write_tar(tmp_path / "flat/imagenet-Train-1.tar", samples([1]))
    write_tar(tmp_path / "flat/imagenet-validation-0.tar", samples([1]))
    for root in tmp_path / "folders", tmp_path / "flat":
        assert has_tars(root, "train")
        assert has_tars(root, "val")
        assert sorted(opened(root).labels.tolist()) == [0, 1]
        assert opened(root, part="val").labels.tolist() == [1]
    assert not has_tars(tmp_path / "nowhere", "train")
    assert refused(tmp_path) == f"data.root = {str(tmp_path)!r} holds no tar files of train: name the folder that does"


def test_a_name_that_may_be_of_either_part_is_refused(tmp_path):
    """Else images would be trained on and tested with."""
    write_tar(tmp_path / "interval-train-0.tar", samples([0]))
    write_tar(tmp_path / "interval-val-0.tar", samples([0]))
    for part in "train", "val":
        assert refused(tmp_path, part) == (
            f"{tmp_path}/interval-train-0.tar may be of train or of val: give its name one of the words, or move the "
            f"files of each into {tmp_path}/train and {tmp_path}/val"
        )


@pytest.mark.parametrize("place", ["beside", "inside"])
def test_the_archives_that_a_folder_of_images_came_in_are_not_taken_for_shards(tmp_path, place):
    """torchvision wants ILSVRC2012_img_train.tar beside what it makes of it."""
    make_folder(tmp_path, classes=2, train=4, val=2, bad=False)
    for part in "train", "val":
        folder = {"beside": tmp_path, "inside": tmp_path / part}[place]
        write_tar(folder / f"ILSVRC2012_img_{part}.tar", {"n01440764.tar": b"a tar"})
        assert not has_tars(tmp_path, part)
    found = loaders(ImageNet(root=str(tmp_path), classes=2, size=16, batch=2, workers=0), "cpu", 0)
    assert found.notes[0].startswith("data.backend = 'auto': torchvision")


@pytest.mark.parametrize("name", ["0.tar.gz", "0.tar.xz", "0.tar.zst"])
def test_a_compressed_tar_is_refused(tmp_path, name):
    write_tar(tmp_path / "train/1.tar", samples([0]))
    (tmp_path / "train" / name).write_bytes(gzip.compress((tmp_path / "train/1.tar").read_bytes()))
    assert refused(tmp_path) == (
        f"{tmp_path}/train/{name} is compressed, so that images cannot be picked out of it: unpack it to a plain .tar"
    )


def test_what_lies_beside_the_tars_is_no_tar(tmp_path):
    for name in ("0.tar.idx", "0.tar.sha256", "0.tar.json", "README.md"):
        (tmp_path / "train").mkdir(exist_ok=True)
        (tmp_path / "train" / name).write_text("text")
    assert opened(tmp_path, samples([0, 1])).note == ""


def test_nothing_that_can_be_used_is_refused_and_says_why(tmp_path):
    write_tar(tmp_path / "train/0.tar", {"a.jpg": encoded(0)})
    place = tmp_path / "train/0.tar"
    assert refused(tmp_path) == (
        f"{place} and the tar files beside it hold no image with a .cls or a .json that has a label "
        f"({place}: 1 images without a class are left out): put the class of <key>.jpg into <key>.cls"
    )
    place.write_text("<html>404 Not Found</html>")
    assert f"({place} is damaged or cut short (" in refused(tmp_path)


def test_pickled_images_are_the_same(tmp_path):
    images = opened(tmp_path, samples([0, 1, 2]))
    images.read(0)
    again = pickle.loads(pickle.dumps(images))
    assert again.fingerprint() == images.fingerprint()
    assert all(torch.equal(again.read(i), images.read(i)) for i in range(3))


def _sums(root: Path) -> list[int]:
    images = TarImages.open(root, "train")
    return [int(images.read(i).long().sum()) for i in range(len(images))]


def test_several_processes_open_the_same_tars(tmp_path, cache):
    write_tar(tmp_path / "train/0.tar", samples([0, 1, 2, 3]))
    with ProcessPoolExecutor(3, mp_context=get_context("fork")) as pool:
        found = list(pool.map(_sums, [tmp_path] * 6))
    assert found == [_sums(tmp_path)] * 6
    assert len(list(cache.iterdir())) == 1


def test_the_fingerprint_changes_with_labels_order_and_names(tmp_path):
    members = samples([0, 1])
    others = [members, dict([*members.items()][::-1]), samples([1, 0]), samples([0, 1], first=2)]
    found = [opened(tmp_path / str(number), other).fingerprint() for number, other in enumerate(others)]
    assert len({*found}) == len(found)
    assert opened(tmp_path / "elsewhere", members).fingerprint() == found[0]


@pytest.mark.parametrize("workers", [0, 2])
def test_training_and_testing_from_tars(tmp_path, workers):
    """The whole way of `mlaan train`'s images, beside the same images as files."""
    train, val = [0, 1, 2] * 4, [2, 0, 1]
    for number in range(2):
        write_tar(tmp_path / f"tars/train/{number}.tar", samples(train[6 * number : 6 * number + 6], 6 * number))
    write_tar(tmp_path / "tars/val/0.tar", samples(val, 20))
    for part, labels, first in (("train", train, 0), ("val", val, 20)):
        for number, label in enumerate(labels, first):
            folder = tmp_path / f"files/{part}/{label}"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{number}.jpg").write_bytes(encoded(number))

    def batches(folder, **fields):
        config = ImageNet(root=str(tmp_path / folder), classes=3, size=16, batch=4, workers=workers, **fields)
        return loaders(config, "cpu", 0)

    found = batches("tars", backend="packed")
    assert found.notes == ()
    assert batches("tars").notes == ("data.backend = 'auto': packed, as data.root holds packed images or tar files",)
    assert [len(labels) for _, labels in found.train] == [4, 4, 4]
    images, labels = zip(*found.test, strict=True)
    assert torch.cat(labels).tolist() == val
    expected = torch.cat([images for images, _ in batches("files").test])
    assert torch.equal(torch.cat(images)[torch.tensor(val).argsort()], expected)


def test_an_image_that_cannot_be_decoded_is_left_out_and_named(tmp_path):
    members = samples([0, 1, 0])
    members |= {"x.jpg": b"not an image", "x.cls": "1", "y.png": b"", "y.cls": "1", "z.jpg": encoded(5, "GIF")}
    members |= {"z.cls": "0"}
    images = opened(tmp_path, members)
    write_tar(tmp_path / "val/0.tar", members)
    for number, name in ((3, "x.jpg"), (4, "y.png")):
        with pytest.raises(Unreadable) as caught:
            images.read(number)
        assert caught.value.name == f"{name} in {tmp_path}/train/0.tar"
        assert caught.value.reason
    assert caught.value.reason == "it is empty"
    found = loaders(ImageNet(root=str(tmp_path), classes=2, size=16, batch=6, workers=0), "cpu", 0)
    said = []
    found.test.say = said.append
    (labels,) = [labels.tolist() for _, labels in found.test]
    assert labels[:3] == [0, 1, 0]
    assert any("x.jpg in " in line for line in said)


def test_labels_that_begin_at_1_have_one_class_more(tmp_path):
    write_tar(tmp_path / "train/0.tar", samples([1, 2, 3, 2]))
    write_tar(tmp_path / "val/0.tar", samples([3, 1]))
    fields = {"root": str(tmp_path), "size": 16, "batch": 2, "workers": 0}
    with pytest.raises(UserError, match=r"data.classes = 3, but .* holds 4 classes: set data.classes = 4"):
        loaders(ImageNet(classes=3, **fields), "cpu", 0)
    found = loaders(ImageNet(classes=4, **fields), "cpu", 0)
    assert [labels.tolist() for _, labels in found.test] == [[3, 1]]


def test_any_label_may_be_missing_in_a_part(tmp_path):
    write_tar(tmp_path / "train/0.tar", samples([0, 1, 2, 2]))
    write_tar(tmp_path / "val/0.tar", samples([0, 2]))
    fields = {"root": str(tmp_path), "size": 16, "batch": 2, "workers": 0, "classes": 3}
    found = loaders(ImageNet(**fields), "cpu", 0)
    assert [labels.tolist() for _, labels in found.test] == [[0, 2]]
    write_tar(tmp_path / "val/0.tar", samples([0, 1, 1]))
    found = loaders(ImageNet(**fields), "cpu", 0)
    assert [labels.tolist() for _, labels in found.test] == [[0, 1], [1]]
    with pytest.raises(UserError, match=r"data.classes = 2, but .* holds 3 classes"):
        loaders(ImageNet(**(fields | {"classes": 2})), "cpu", 0)
    write_tar(tmp_path / "train/0.tar", samples([0, 1, 1]))
    write_tar(tmp_path / "val/0.tar", samples([2, 0]))
    found = loaders(ImageNet(**fields), "cpu", 0)
    assert [labels.tolist() for _, labels in found.test] == [[2, 0]], "the highest is in val alone"
