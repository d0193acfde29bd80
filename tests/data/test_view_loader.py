"""The loader of stored images: what a batch holds, exact resumption, images that cannot be read."""

import io
from random import Random

import numpy as np
import pytest
import torch
from PIL import Image

from data.batches import joined, labels, same, take
from data.official_files import smooth
from data.view_loader_cases import COUNT, MEAN, STD, Faulty, files, make, unreadable, whole
from mlaan.data.files import ImageFiles, decode
from mlaan.data.loader import mixed_seed
from mlaan.data.view_loader import signed
from mlaan.data.views import CentreView, RandomView, ViewPlan
from mlaan.errors import UserError
from mlaan_kernels.normalize_augment import reference

__all__ = ["files", "whole"]


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
        with pytest.raises(UserError, match=r"^data\.root and data\.backend give other images than those"):
            make(changed).load_state_dict(make(files).state_dict())
    make(files, plan=ViewPlan(20, 20), workers=2).load_state_dict(make(files).state_dict())


def test_images_grow_with_the_epochs_also_after_a_resume(files):
    plan = ViewPlan(48, 52, start_size=16, grow_epochs=4)
    whole = take(make(files, plan), 30)
    sizes = [tuple(batch.images.shape[2:]) for batch in whole]
    assert sizes == [(size, size) for size in (16, 24, 32, 40, 48, 48) for _ in range(5)]
    for done in (10, 12):  # between two epochs, and within one whose size is new
        stopped, resumed = make(files, plan), make(files, plan)
        take(stopped, done)
        resumed.load_state_dict(stopped.state_dict())
        assert same(take(resumed, 5), whole[done : done + 5]), done
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
