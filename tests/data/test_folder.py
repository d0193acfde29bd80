"""The loader of image files: what it decodes, that workers change nothing, and exact resumption."""

import io
import multiprocessing
import os
import signal
import subprocess

import numpy as np
import pytest
import torch
from PIL import Image

from data.official_files import smooth
from mlaan.data import folder
from mlaan.data.folder import FolderLoader, ImageFiles, decode
from mlaan.data.views import CentreView, RandomView
from mlaan.errors import UserError

COUNT = 22


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """22 images whose labels are their numbers."""
    root = tmp_path_factory.mktemp("images")
    random = np.random.RandomState(4)
    names = [f"{number:02}.jpg" for number in range(COUNT)]
    for name in names:
        Image.fromarray(smooth(*random.randint(20, 40, 2), random)).save(root / name, quality=95)
    return ImageFiles(root, np.array([name.encode() for name in names]), torch.arange(COUNT))


def make(files, **changes):
    arguments = {
        "view": RandomView(16),
        "batch": 4,
        "device": "cpu",
        "mean": (0.5, 0.4, 0.3),
        "std": (0.2, 0.3, 0.4),
        "shuffle": True,
        "drop_last": True,
        "seed": 3,
        "workers": 0,
    }
    return FolderLoader(files, **(arguments | changes))


def take(loader, count):
    """The next `count` batches, over the ends of epochs."""
    taken = []
    while len(taken) < count:
        for batch in loader:
            taken.append(batch)
            if len(taken) == count:
                break
    return taken


def same(one, other):
    return all(
        torch.equal(mine.images, theirs.images) and torch.equal(mine.labels, theirs.labels)
        for mine, theirs in zip(one, other, strict=True)
    )


@pytest.fixture(scope="module")
def whole(files):
    return take(make(files), 12)


def test_a_batch_holds_normalised_views_and_their_labels(files):
    loader = make(files, view=CentreView(16, 18), shuffle=False, drop_last=False)
    batches = list(loader)
    assert [len(batch.labels) for batch in batches] == [4] * 5 + [2]
    assert (len(loader), loader.images_per_epoch) == (6, COUNT)
    assert torch.cat([batch.labels for batch in batches]).tolist() == list(range(COUNT))
    images = torch.cat([batch.images for batch in batches])
    assert (images.dtype, images.is_contiguous()) == (torch.float32, True)
    mean, std = (torch.tensor(values)[:, None, None] for values in ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4)))
    for number in range(COUNT):
        expected = (CentreView(16, 18)(decode(files.path(number)), None) / 255 - mean) / std
        torch.testing.assert_close(images[number], expected, atol=1e-5, rtol=0)


def test_an_epoch_gives_every_image_once_in_a_new_order(files):
    loader = make(files, drop_last=False)
    first, second = (torch.cat([batch.labels for batch in loader]).tolist() for _ in range(2))
    assert sorted(first) == sorted(second) == list(range(COUNT))
    assert first != second
    assert first != sorted(first)
    assert [len(batch.labels) for batch in make(files).batches(0, 3)] == [4, 4], "nothing is decoded in vain"


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(files, whole, workers):
    assert same(take(make(files, workers=workers), 12), whole)


@pytest.mark.parametrize("before", [0, 2])
@pytest.mark.parametrize("after", [0, 2])
@pytest.mark.parametrize("done", [3, 5, 7])
def test_resuming_goes_on_exactly(files, whole, before, after, done):
    stopped = make(files, workers=before)
    take(stopped, done)
    file = io.BytesIO()
    torch.save(stopped.state_dict(), file)
    file.seek(0)
    resumed = make(files, workers=after)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert same(take(resumed, 12 - done), whole[done:])


def test_the_view_depends_on_seed_epoch_and_image_alone(files, whole):
    def views(batches):
        return {int(label): image for batch in batches for image, label in zip(*batch, strict=True)}

    first, second = views(whole[:5]), views(whole[5:10])
    other_batches, other_seed = (views(make(files, **change)) for change in ({"batch": 11}, {"seed": 4}))
    in_order = views(make(files, shuffle=False))
    for number in first.keys() & in_order.keys():
        assert torch.equal(first[number], in_order[number])
    for other in second, other_seed:
        assert not any(torch.equal(first[number], other[number]) for number in first.keys() & other.keys())
    assert all(torch.equal(first[number], other_batches[number]) for number in first)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_runs_own_random_numbers_stay(files, workers):
    torch.manual_seed(0)
    state = torch.get_rng_state()
    take(make(files, workers=workers), 6)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_state_of_other_files_is_refused(files):
    for changed in (
        ImageFiles(files.root, files.names[::-1].copy(), files.labels),
        ImageFiles(files.root, files.names, files.labels.flip(0)),
    ):
        with pytest.raises(UserError, match=r"^the loader's state has files = \d+, this run has \d+: resume with"):
            make(changed).load_state_dict(make(files).state_dict())
    make(files, view=RandomView(20), workers=2).load_state_dict(make(files).state_dict())


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "1", "RGBA", "P"])
def test_decode_gives_three_channels(tmp_path, mode):
    array = smooth(20, 30, np.random.RandomState(0))
    kind = "JPEG" if mode in ("RGB", "L", "CMYK") else "PNG"
    path = tmp_path / "image.JPEG"
    Image.fromarray(array).convert(mode).save(path, kind, quality=95)
    decoded = decode(str(path))
    assert (decoded.dtype, decoded.shape) == (torch.uint8, (3, 20, 30))
    expected = torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)
    assert int((decoded.int() - expected.int()).abs().max()) <= 3
    if mode == "L":
        assert torch.equal(decoded[0], decoded[1])


def test_decode_makes_8_bits_of_16(tmp_path):
    levels = np.arange(0, 65536, 13, dtype=np.uint16)[:5000].reshape(50, 100)
    Image.fromarray(levels).save(tmp_path / "deep.png")
    decoded = decode(str(tmp_path / "deep.png"))
    assert decoded.dtype == torch.uint8
    assert int((decoded[0].int() - torch.from_numpy((levels / 257).astype(np.int32))).abs().max()) <= 1


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("fault", ["cut", "empty", "text", "missing", "gif"])
def test_a_file_that_cannot_be_decoded_is_named(tmp_path, workers, fault):
    for number in range(8):
        Image.fromarray(smooth(30, 30, np.random.RandomState(number))).save(tmp_path / f"{number}.jpg")
    path = tmp_path / "5.jpg"
    if fault == "missing":
        path.unlink()
    elif fault == "gif":
        frames = [Image.fromarray(smooth(30, 30, np.random.RandomState(number))) for number in range(2)]
        frames[0].save(path, "GIF", save_all=True, append_images=frames[1:])
    else:
        content = path.read_bytes()
        path.write_bytes({"cut": content[: len(content) // 2], "empty": b"", "text": b"not an image"}[fault])
    files = ImageFiles(tmp_path, np.array([f"{number}.jpg".encode() for number in range(8)]), torch.arange(8))
    batches = iter(make(files, shuffle=False, batch=2, workers=workers))
    assert [next(batches).labels.tolist() for _ in range(2)] == [[0, 1], [2, 3]]
    with pytest.raises(UserError) as caught:
        next(batches)
    message = str(caught.value)
    assert message.startswith(f"{path} " + ("holds 2 pictures" if fault == "gif" else "cannot be decoded ("))
    assert message.endswith(": replace the file, or take it out")
    assert "\n" not in message


@pytest.mark.parametrize("name", ["INT", "TERM"])
def test_a_signal_to_all_processes_leaves_the_workers_at_work(files, name):
    batches = iter(make(files, workers=2, batch=1))
    taken = [next(batches)]
    for worker in multiprocessing.active_children():
        subprocess.run(["kill", f"-{name}", str(worker.pid)], check=True)
    taken += batches
    assert same(taken, list(make(files, batch=1)))


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_reaches_no_worker_before_it_is_ready(files, name, monkeypatch):
    """Sent to each worker at the very moment at which it begins."""
    ready = folder._obey_the_parent_alone

    def late(worker: int) -> None:
        os.kill(os.getpid(), getattr(signal, name))
        ready(worker)

    monkeypatch.setattr(folder, "_obey_the_parent_alone", late)
    assert same(list(make(files, workers=2, batch=1)), list(make(files, batch=1)))


def test_the_training_process_ends_its_workers(files):
    """As Python does at its exit with every worker that is left."""
    batches = iter(make(files, workers=2))
    next(batches)
    workers = multiprocessing.active_children()
    assert len(workers) == 2
    for worker in workers:
        worker.terminate()
        worker.join(20)
        assert worker.exitcode == 0


def test_no_worker_outlives_a_loop_that_is_left(files):
    for _ in make(files, workers=2):
        break
    assert multiprocessing.active_children() == []


@pytest.mark.gpu
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_on_a_gpu_are_those_of_the_cpu(files, whole, workers):
    for mine, theirs in zip(take(make(files, device="cuda", workers=workers), 12), whole, strict=True):
        assert mine.images.device.type == mine.labels.device.type == "cuda"
        assert torch.equal(mine.labels.cpu(), theirs.labels)
        torch.testing.assert_close(mine.images.cpu(), theirs.images, atol=1e-6, rtol=0)
