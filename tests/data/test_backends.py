"""ImageNet's backends: the same labels and images by each, which one "auto" takes, and what a person is told."""

import pytest
import torch

from data.imagenet_folder import make_folder
from mlaan.data import ImageNet, backends, dali, held, loaders
from mlaan.data.backends import choose
from mlaan.data.check import check_part, open_part
from mlaan.data.pack import PackSettings, pack_part
from mlaan.errors import UserError

TRAIN, VAL, CLASSES = 24, 14, 4
FROM_FILES = ("torchvision", "memory", "packed jpeg", "packed uint8", "dali")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder that was checked."""
    made = make_folder(tmp_path_factory.mktemp("set"), classes=CLASSES, train=TRAIN, val=VAL, sides=(30, 90))
    for part in "train", "val":
        check_part(made.root / part, str(made.root), workers=1)
    return made


@pytest.fixture(scope="module")
def packed(made, tmp_path_factory):
    """{form: folder} of the same, packed; no image is larger than 256, so all keep their size."""
    folders = {form: tmp_path_factory.mktemp(form) for form in ("jpeg", "uint8")}
    for form, folder in folders.items():
        for part in "train", "val":
            settings = PackSettings(size=256, form=form, quality=95, shard_bytes=1 << 20)
            pack_part(open_part(made.root / part, str(made.root)), made.root / part, folder / part, settings, workers=1)
    return folders


def opened(made, packed, name, **changes):
    backend, _, form = name.partition(" ")
    if backend == "dali" and dali.why_not():
        pytest.skip("needs NVIDIA DALI")
    root = packed[form] if form else made.root
    fields = {"classes": CLASSES, "size": 32, "batch": 5, "workers": 0} | changes
    return loaders(ImageNet(root=str(root), backend=backend, **fields), "cpu", 7)


def gather(loader):
    images, labels = zip(*loader, strict=True)
    return torch.cat(images), torch.cat(labels)


@pytest.fixture(scope="module")
def reference(made):
    """What torchvision's backend gives of an epoch, and of testing."""
    fields = {"classes": CLASSES, "size": 32, "batch": 5, "workers": 0}
    _, train, test = loaders(ImageNet(root=str(made.root), backend="torchvision", **fields), "cpu", 7)
    return gather(train), gather(test)


@pytest.mark.parametrize("name", FROM_FILES)
def test_every_backend_gives_the_same_labels_and_nearly_the_same_images(made, packed, reference, name):
    _, train, test = opened(made, packed, name)
    assert (train.images_per_epoch, test.images_per_epoch) == (TRAIN // 5 * 5, VAL)
    for part, (images, labels) in ((train, reference[0]), (test, reference[1])):
        seen, found = gather(part)
        assert torch.equal(found, labels)
        assert seen.shape == images.shape
        levels = (seen - images).abs() * 0.225 * 255
        # Decoders differ a little at the edges of colours, most for CMYK; a wrong box or mirror is some tens of levels.
        assert levels.flatten(1).mean(1).max() < 4
        assert levels.mean() < 0.5
    assert torch.equal(reference[1][1], torch.tensor(sorted(made.good["val"].values())))


@pytest.mark.parametrize("workers", [0, 2])
def test_images_held_in_memory_are_the_files_bit_for_bit(made, packed, reference, workers):
    _, train, test = opened(made, packed, "memory", workers=workers)
    for part, (images, labels) in ((train, reference[0]), (test, reference[1])):
        seen, found = gather(part)
        assert torch.equal(found, labels)
        assert torch.equal(seen, images)


@pytest.mark.parametrize("name", ["memory", "dali"])
def test_a_run_goes_on_with_another_backend_at_the_same_image(made, packed, reference, name):
    _, first, _ = opened(made, packed, "torchvision")
    for _ in zip(range(2), first, strict=False):
        pass
    _, other, _ = opened(made, packed, name)
    other.load_state_dict(first.state_dict())
    assert torch.equal(gather(other)[1], reference[0][1][10:])


@pytest.mark.parametrize("name", FROM_FILES)
def test_files_that_were_found_bad_are_left_out_and_counted_at_the_start(made, packed, name, recwarn):
    found = opened(made, packed, name)
    told = [note for note in found.notes if "left out" in note]
    assert len(told) == 2
    assert all("4 " in note for note in told)
    for loader in found.train, found.test:
        list(loader)
        assert loader.stats.left_out == {}
        assert loader.stats.images == loader.images_per_epoch
    assert not recwarn.list


def test_a_folder_that_was_not_checked_is_trained_on_all_the_same(tmp_path):
    made = make_folder(tmp_path, classes=CLASSES, train=TRAIN, val=VAL, sides=(30, 90))
    found = opened(made, {}, "torchvision")
    for part, note in zip(("train", "val"), found.notes, strict=True):
        assert note.startswith(f"{tmp_path}/{part} has not been checked")
    said = []
    found.test.say = said.append
    labels = gather(found.test)[1].tolist()
    named = {kind for path, kind in made.bad.items() for line in said if str(tmp_path / path) in line}
    assert named == {"empty", "truncated", "text"}, "an image of one pixel can be seen: only a check finds it"
    assert len(labels) == VAL + 1
    assert len(said) == 3


def test_dali_has_an_unchecked_folder_checked_first_and_says_so(tmp_path):
    made = make_folder(tmp_path, classes=CLASSES, train=TRAIN, val=VAL, sides=(30, 90))
    with pytest.warns(RuntimeWarning, match=r"checking .*/(train|val) first, once.*shows how far it is"):
        found = opened(made, {}, "dali")
    assert found.notes[0] == f"checked {tmp_path}/train and {tmp_path}/val first, as DALI needs the sizes"
    assert len([note for note in found.notes if "4 of" in note and "left out" in note]) == 2
    assert found.test.images_per_epoch == VAL
    assert opened(made, {}, "dali").notes == found.notes[1:]


def test_what_auto_takes(made, packed, tmp_path, monkeypatch):
    gpu, cpu = torch.device("cuda", 0), torch.device("cpu")
    for folder in packed.values():
        assert choose(folder, gpu) == choose(folder, cpu) == ("packed", "as data.root holds packed images or tar files")
    assert choose(made.root, cpu)[0] == choose(tmp_path, cpu)[0] == "torchvision"
    monkeypatch.setattr(dali, "why_not", lambda: None)
    assert choose(made.root, gpu)[0] == "dali"
    monkeypatch.setattr(dali, "why_not", lambda: "NVIDIA DALI is not installed: pip install it")
    assert choose(made.root, gpu) == ("torchvision", "as NVIDIA DALI is not installed: pip install it")
    assert choose(made.root, cpu)[0] == "torchvision"


def test_auto_tells_what_it_took(made, packed):
    assert opened(made, packed, "auto").notes[0] == "data.backend = 'auto': torchvision, as there is no GPU"
    assert opened(made, packed, "torchvision").notes[0].startswith(f"{made.root}/train: ")


def refused(root, **fields):
    with pytest.raises(UserError) as caught:
        loaders(ImageNet(root=str(root), classes=CLASSES, size=32, workers=1, **fields), "cpu", 0)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_dali_where_it_is_not_installed(made, monkeypatch):
    monkeypatch.setattr(dali, "why_not", lambda: "NVIDIA DALI is not installed: pip install it")
    assert refused(made.root, backend="dali") == (
        "data.backend = 'dali', but NVIDIA DALI is not installed: pip install it, or set data.backend = 'torchvision'"
    )


def test_packed_where_nothing_is_packed(made):
    assert refused(made.root, backend="packed") == (
        f"data.backend = 'packed', but {made.root}/train holds no packed images: `mlaan data pack {made.root} OUT` "
        "writes them, then set data.root = OUT"
    )


@pytest.mark.parametrize("is_checked", [True, False])
def test_images_that_do_not_fit_into_memory(made, tmp_path, monkeypatch, is_checked):
    root = made.root if is_checked else make_folder(tmp_path, classes=CLASSES, train=8, val=8, sides=(30, 90)).root
    monkeypatch.setattr(held, "free_memory", lambda: 10_000)
    decoded, read = [], held._read
    monkeypatch.setattr(held, "_read", lambda files, index: decoded.append(index) or read(files, index))
    monkeypatch.setattr(held, "_CHUNK", 2)
    message = refused(root, backend="memory")
    assert message.startswith("data.backend = 'memory', but ")
    assert " bytes, and 8,000 of the free memory are for them: set data.backend = 'torchvision', or pack" in message
    assert len(decoded) == 0 if is_checked else 2 <= len(decoded) <= 4
    if is_checked:
        sizes = [backends.open_part(root / part, str(root)).files.sizes for part in ("train", "val")]
        total = 3 * sum(int(height) * int(width) for part in sizes for height, width in part)
        assert f"decoded, the images take {total:,} bytes" in message


def test_made_up_images_need_no_files_and_can_be_learnt():
    fields = {"backend": "synthetic", "root": "/nowhere", "classes": 3, "size": 32, "batch": 60, "workers": 0}
    found = loaders(ImageNet(**fields), "cpu", 0)
    assert found.notes == ("data.backend = 'synthetic': the images are made up",)
    assert (found.train.images_per_epoch, found.test.images_per_epoch) == (3 * 1281 // 60 * 60, 150)
    batch = next(iter(found.train))
    assert batch.images.shape == (60, 3, 32, 32)
    again = next(iter(loaders(ImageNet(**fields), "cpu", 0).train))
    assert torch.equal(batch.images, again.images)
    images, labels = gather(found.test)
    assert labels.bincount().tolist() == [50, 50, 50]
    assert len(images.flatten(1).unique(dim=0)) == 150
    # The nearest mean of a class, of small images: mirrored ones and parts of them blur the pattern.
    small = torch.nn.functional.adaptive_avg_pool2d(images, 4).flatten(1)
    means = torch.stack([small[labels == label][:25].mean(0) for label in range(3)])
    assert (torch.cdist(small, means).argmin(1) == labels).float().mean() > 0.95
