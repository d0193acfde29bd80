"""The loader of stored images: what a batch holds, exact resumption, images that cannot be read, workers that die."""

import io
import multiprocessing
import os
import signal
import subprocess
from random import Random

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import dataloader

from data.official_files import smooth
from mlaan.data import ViewLoader, workers
from mlaan.data.files import ImageFiles, decode
from mlaan.data.loader import mixed_seed
from mlaan.data.store import Unreadable
from mlaan.data.view_loader import signed
from mlaan.data.views import CentreView, RandomView, ViewPlan
from mlaan.errors import UserError
from mlaan_kernels.normalize_augment import reference

COUNT = 22
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """22 images whose labels are their numbers."""
    root = tmp_path_factory.mktemp("images")
    random = np.random.RandomState(4)
    names = [f"{number:02}.jpg" for number in range(COUNT)]
    for name in names:
        Image.fromarray(smooth(*random.randint(20, 40, 2), random)).save(root / name, quality=95)
    return ImageFiles(root, np.array([name.encode() for name in names]), torch.arange(COUNT))


class Faulty:
    """Images of which some do something else when they are read."""

    def __init__(self, images, faults):
        self._images, self._faults, self.labels = images, faults, images.labels

    def __len__(self):
        return len(self._images)

    def name(self, index):
        return self._images.name(index)

    def read(self, index):
        if index in self._faults:
            self._faults[index]()
        return self._images.read(index)

    def fingerprint(self):
        return self._images.fingerprint()


def unreadable(*numbers):
    def fail(number):
        raise Unreadable(f"image {number}", "it is gone")

    return {number: lambda number=number: fail(number) for number in numbers}


def make(images, plan=ViewPlan(16, 18), **changes):  # noqa: B008 - frozen
    arguments = {
        "training": True,
        "batch": 4,
        "device": "cpu",
        "mean": MEAN,
        "std": STD,
        "seed": 3,
        "workers": 0,
    }
    return ViewLoader(images, plan, **(arguments | changes))


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


def labels(batches):
    return [batch.labels.tolist() for batch in batches]


def joined(batches):
    return torch.cat([batch.labels for batch in batches]).tolist()


@pytest.fixture(scope="module")
def whole(files):
    return take(make(files), 12)


@pytest.fixture
def impatient(monkeypatch):
    """Asks every fifth of a second whether a worker died, not every five."""
    monkeypatch.setattr(dataloader._MultiProcessingDataLoaderIter._try_get_data, "__defaults__", (0.2,))


def normalised(view):
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    return (view / 255 - mean) / std


def test_a_test_batch_holds_normalised_middles_in_order(files):
    loader = make(files, training=False)
    batches = list(loader)
    assert [len(batch.labels) for batch in batches] == [4] * 5 + [2]
    assert (len(loader), loader.images_per_epoch, loader.stats.images) == (6, COUNT, COUNT)
    assert joined(batches) == list(range(COUNT))
    images = torch.cat([batch.images for batch in batches])
    assert (images.dtype, images.shape) == (torch.float32, (COUNT, 3, 16, 16))
    for number in range(COUNT):
        expected = normalised(CentreView(16, 18)(decode(files.path(number)), Random(0)))
        torch.testing.assert_close(images[number], expected, atol=1e-5, rtol=0)


def test_a_training_batch_holds_the_random_view_of_seed_epoch_and_number_mirrored_or_not(files, whole):
    mirrored = []
    for step, batch in enumerate(whole):
        for image, label in zip(batch.images, batch.labels.tolist(), strict=True):
            seed = mixed_seed(3, step // 5, 1 + label)
            view = RandomView(16)(decode(files.path(label)), Random(seed))
            mirrored += reference.choices(torch.tensor([signed(seed)]), 0, True).mirrored.tolist()
            expected = normalised(view.flip(2) if mirrored[-1] else view)
            torch.testing.assert_close(image, expected, atol=1e-5, rtol=0)
    assert 0.2 < sum(mirrored) / len(mirrored) < 0.8


def test_an_epoch_gives_every_image_once_in_a_new_order(files):
    loader = make(files, batch=11)
    first, second = (joined(loader) for _ in range(2))
    assert sorted(first) == sorted(second) == list(range(COUNT))
    assert first != second
    assert first != sorted(first)
    assert [len(batch.labels) for batch in make(files).batches(0, 3)] == [4, 4], "nothing is decoded in vain"


@pytest.mark.parametrize("number", [1, 2])
def test_workers_change_nothing(files, whole, number):
    assert same(take(make(files, workers=number), 12), whole)


@pytest.mark.parametrize(("before", "after"), [(0, 0), (2, 0), (0, 2)])
def test_resuming_goes_on_exactly(files, whole, before, after):
    for done in range(1, 9) if before == after else (3, 5, 7):
        stopped = make(files, workers=before)
        take(stopped, done)
        file = io.BytesIO()
        torch.save(stopped.state_dict(), file)
        file.seek(0)
        resumed = make(files, workers=after)
        resumed.load_state_dict(torch.load(file, weights_only=True))
        assert same(take(resumed, 12 - done), whole[done:]), done


def test_the_view_depends_on_seed_epoch_and_image_alone(files, whole):
    def views(batches):
        return {int(label): image for batch in batches for image, label in zip(*batch, strict=True)}

    first, second = views(whole[:5]), views(whole[5:10])
    other_batches, other_seed = (views(make(files, **change)) for change in ({"batch": 11}, {"seed": 4}))
    for other in second, other_seed:
        assert not any(torch.equal(first[number], other[number]) for number in first.keys() & other.keys())
    assert all(torch.equal(first[number], other_batches[number]) for number in first)


@pytest.mark.parametrize("number", [0, 2])
def test_the_runs_own_random_numbers_stay(files, number):
    torch.manual_seed(0)
    state = torch.get_rng_state()
    take(make(files, workers=number), 6)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_state_of_other_files_is_refused(files):
    for changed in (
        ImageFiles(files.root, files.names[::-1].copy(), files.labels),
        ImageFiles(files.root, files.names, files.labels.flip(0)),
    ):
        with pytest.raises(UserError, match=r"^data\.root holds other images than those"):
            make(changed).load_state_dict(make(files).state_dict())
    make(files, plan=ViewPlan(20, 20), workers=2).load_state_dict(make(files).state_dict())


def test_images_grow_with_the_epochs_also_after_a_resume(files):
    plan = ViewPlan(48, 52, start_size=16, grow_epochs=4)
    loader = make(files, plan)
    sizes = []
    for epoch in range(6):
        if epoch == 2:
            state = loader.state_dict()
            loader = make(files, plan)
            loader.load_state_dict(state)
        sizes.append({tuple(batch.images.shape[2:]) for batch in loader})
    assert sizes == [{(size, size)} for size in (16, 24, 32, 40, 48, 48)]
    assert {tuple(batch.images.shape[2:]) for batch in make(files, plan, training=False)} == {(48, 48)}


@pytest.mark.parametrize("number", [0, 2])
@pytest.mark.parametrize("fault", ["cut", "missing", "gif"])
def test_a_file_that_cannot_be_read_is_left_out_named_once_and_counted(tmp_path, number, fault):
    for i in range(8):
        Image.fromarray(smooth(30, 30, np.random.RandomState(i))).save(tmp_path / f"{i}.jpg")
    path = tmp_path / "5.jpg"
    if fault == "missing":
        path.unlink()
    elif fault == "gif":
        frames = [Image.fromarray(smooth(30, 30, np.random.RandomState(i))) for i in range(2)]
        frames[0].save(path, "GIF", save_all=True, append_images=frames[1:])
    else:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    files = ImageFiles(tmp_path, np.array([f"{i}.jpg".encode() for i in range(8)]), torch.arange(8))
    loader = make(files, training=False, batch=3, workers=number)
    said = []
    loader.say = said.append
    for _ in range(2):
        assert labels(loader) == [[0, 1, 2], [3, 4], [6, 7]]
    assert list(loader.stats.left_out) == [str(path)]
    assert loader.stats.images == 14
    [line] = said
    assert line.startswith(f"left out, as it cannot be read: {path}: ")
    assert "\n" not in line


def test_by_default_what_is_left_out_is_a_warning(files):
    with pytest.warns(RuntimeWarning, match=r"^left out, as it cannot be read: image 5: it is gone$"):
        list(make(Faulty(files, unreadable(5)), training=False))


def test_a_file_that_vanishes_in_mid_epoch_ends_nothing(files, tmp_path, recwarn):
    for i in range(COUNT):
        (tmp_path / f"{i:02}.jpg").write_bytes((files.root / f"{i:02}.jpg").read_bytes())
    moved = ImageFiles(tmp_path, files.names, files.labels)
    loader = make(moved, training=False)
    batches = iter(loader)
    seen = joined([next(batches)])
    (tmp_path / "13.jpg").unlink()
    seen += joined(batches)
    assert seen == [number for number in range(COUNT) if number != 13]
    assert list(loader.stats.left_out) == [moved.name(13)]


def test_a_single_image_left_in_training_is_skipped_and_in_testing_given(files, recwarn):
    training = make(files)
    first, second, *_ = labels(training.batches(0, 0))
    images = Faulty(files, unreadable(*second[1:]))
    seen = make(images)
    assert labels(seen)[:2] == [first, labels(training.batches(0, 2))[0]]
    assert (seen.epoch, seen.position) == (1, 0)
    resumed = make(images)
    resumed.load_state_dict(seen.state_dict() | {"epoch": 0, "position": 1})
    assert labels(resumed)[0] == labels(training.batches(0, 2))[0]
    assert [2] in labels(make(Faulty(files, unreadable(0, 1, 3)), training=False))
    assert [len(batch.labels) for batch in take(make(files, batch=1), 2)] == [1, 1], "a single image that was asked for"


def test_a_batch_of_which_nothing_can_be_read_ends_the_run(files, recwarn):
    loader = make(Faulty(files, unreadable(4, 5, 6, 7)), training=False)
    with pytest.raises(
        UserError, match=r"none of the 4 images that are due can be read \(image 4: it is gone\): is data"
    ):
        list(loader)


def test_a_batch_of_one_image_that_cannot_be_read_is_left_out_but_not_two_in_a_row(files, recwarn):
    loader = make(Faulty(files, unreadable(COUNT - 1)), training=False, batch=7)
    assert [len(given) for given in labels(loader)] == [7, 7, 7]
    assert loader.epoch == 1
    with pytest.raises(UserError, match="none of the 2 images that are due"):
        list(make(Faulty(files, unreadable(5, 6)), training=False, batch=1))


def test_two_batches_of_one_that_cannot_be_read_are_left_out_where_others_lie_between(files, recwarn):
    loader = make(Faulty(files, unreadable(5, 12)), training=False, batch=1)
    assert joined(loader) == [number for number in range(COUNT) if number not in (5, 12)]


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
    ready = workers._obey_the_parent_alone

    def late(worker: int) -> None:
        os.kill(os.getpid(), getattr(signal, name))
        ready(worker)

    monkeypatch.setattr(workers, "_obey_the_parent_alone", late)
    assert same(list(make(files, workers=2, batch=1)), list(make(files, batch=1)))


def test_the_training_process_ends_its_workers(files):
    """As Python does at its exit with every worker that is left."""
    batches = iter(make(files, workers=2))
    next(batches)
    children = multiprocessing.active_children()
    assert len(children) == 2
    for worker in children:
        worker.terminate()
        worker.join(20)
        assert worker.exitcode == 0


def test_no_worker_outlives_a_loop_that_is_left(files):
    for _ in make(files, workers=2):
        break
    assert multiprocessing.active_children() == []


def test_after_a_worker_is_killed_others_give_the_same_bits(files, whole, tmp_path, impatient):
    killed = tmp_path / "killed"

    def die():
        if not killed.exists():
            killed.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    loader = make(Faulty(files, {int(whole[7].labels[1]): die}), workers=2)
    said = []
    loader.say = said.append
    assert same(take(loader, 12), whole)
    assert killed.exists()
    assert said == ["a process that reads images was killed (SIGKILL); others read that batch again"]
    assert multiprocessing.active_children() == []


def test_a_worker_that_is_killed_while_nobody_waits_does_not_disturb_the_step(files, whole, impatient):
    loader = make(files, workers=2)
    said = []
    loader.say = said.append
    batches = iter(loader)
    taken = [next(batches)]
    for worker in multiprocessing.active_children():
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGKILL)
        worker.join()  # a step during which the death is told: by the system's signal to this process
    taken += batches
    assert same(taken, whole[:5])
    assert len(said) <= 1  # none where all batches had been handed over


def test_a_worker_that_is_killed_twice_at_a_batch_ends_the_run(files, impatient):
    loader = make(Faulty(files, {9: lambda: os._exit(7)}), training=False, workers=1)
    said = []
    loader.say = said.append
    with pytest.raises(UserError) as caught:
        list(loader)
    assert len(said) in (1, 2), "once for the batch it died at, perhaps once before at one that was not handed over"
    assert str(caught.value).startswith(
        "data.workers = 1: a process that reads images was killed twice at one batch (exit status 7): set data.workers"
    )


def test_an_error_in_a_worker_is_not_taken_for_its_death(files):
    def fail():
        raise RuntimeError("a mistake in the DataLoader worker (pid 3)")

    with pytest.raises(RuntimeError, match="a mistake in the"):
        list(make(Faulty(files, {3: fail}), training=False, workers=1))


def test_the_time_that_the_step_waits_is_counted(files, monkeypatch):
    moments = iter(range(100))
    monkeypatch.setattr("time.perf_counter", lambda: next(moments))
    loader = make(files, training=False)
    for _ in loader:
        next(moments)  # a step, which does not count
    assert loader.stats.waited == 6


@pytest.mark.gpu
@pytest.mark.parametrize("number", [0, 2])
def test_batches_on_a_gpu_are_those_of_the_cpu(files, whole, number):
    for mine, theirs in zip(take(make(files, device="cuda", workers=number), 12), whole, strict=True):
        assert mine.images.device.type == mine.labels.device.type == "cuda"
        assert torch.equal(mine.labels.cpu(), theirs.labels)
        assert torch.equal(mine.images.cpu(), theirs.images)
