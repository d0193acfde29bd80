"""The loader: what an epoch holds, where its randomness comes from, and exact resumption."""

import io

import pytest
import torch

from data.batches import joined, same, take
from mlaan.data import MemoryLoader
from mlaan.data.augment import CropFlip
from mlaan.errors import UserError

COUNT = 22


def make(**changes):
    """A loader over images that differ in every pixel value, so that an image is known by its content."""
    count = changes.pop("count", COUNT)
    images = torch.randint(256, (count, 2, 6, 6), generator=torch.Generator().manual_seed(5)).to(torch.uint8)
    arguments = {
        "batch": 4,
        "device": "cpu",
        "mean": (0.0, 0.0),
        "std": (1 / 255, 1 / 255),
        "augment": CropFlip(pad=1, edge="zero", flip=True),
        "shuffle": True,
        "drop_last": True,
        "seed": 3,
    }
    return MemoryLoader(images, torch.arange(count), **(arguments | changes))


def test_a_batch_holds_normalised_floats_and_their_labels():
    loader = make(augment=None, mean=(0.5, 0.25), std=(0.5, 0.25))
    batch = next(iter(loader))
    assert (batch.images.dtype, batch.labels.dtype) == (torch.float32, torch.int64)
    assert batch.images.is_contiguous()
    pixels = loader.images[batch.labels].double() / 255
    expected = torch.stack([(pixels[:, 0] - 0.5) / 0.5, (pixels[:, 1] - 0.25) / 0.25], 1)
    torch.testing.assert_close(batch.images.double(), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("count", "drop_last", "sizes"),
    [(22, True, [4] * 5), (22, False, [4] * 5 + [2]), (20, False, [4] * 5), (3, False, [3])],
)
def test_lengths(count, drop_last, sizes):
    loader = make(count=count, drop_last=drop_last)
    assert [len(batch.labels) for batch in loader] == sizes
    assert (len(loader), loader.images_per_epoch) == (len(sizes), sum(sizes))


def test_an_epoch_gives_every_image_once_in_a_new_order():
    loader = make(drop_last=False)
    first, second = joined(loader), joined(loader)
    assert sorted(first) == sorted(second) == list(range(COUNT))
    assert first != second
    assert first != sorted(first)


def test_without_shuffle_the_order_is_that_of_the_images():
    loader = make(shuffle=False, drop_last=False)
    assert joined(loader) == joined(loader) == list(range(COUNT))


def test_augmentation_differs_between_batches_epochs_and_seeds():
    class Draws:
        """Records the first random number it is offered."""

        def __init__(self):
            self.seen = []

        def __call__(self, images, generator):
            self.seen.append(float(torch.rand((), generator=generator, dtype=torch.float64)))
            return images

    draws = Draws()
    for seed in (3, 4):
        take(make(augment=draws, seed=seed), 15)
    assert len(set(draws.seen)) == 30


def test_the_same_seed_gives_the_same_batches_whatever_else_is_drawn():
    first = take(make(), 8)
    torch.manual_seed(123)
    loader = make()
    again = []
    for batch in loader:
        torch.rand(7)
        again.append(batch)
    again += take(loader, 3)
    assert same(first, again)
    assert not same(first, take(make(seed=4), 8))


@pytest.mark.parametrize("done", [0, 1, 3, 4, 5, 6, 12])
def test_resuming_goes_on_exactly(done):
    whole = take(make(), 16)
    stopped = make()
    take(stopped, done)
    file = io.BytesIO()
    torch.save(stopped.state_dict(), file)
    file.seek(0)
    resumed = make()
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert same(take(resumed, 16 - done), whole[done:])


@pytest.mark.parametrize("lost", ["epoch", "position"])
def test_resuming_needs_every_part_of_the_place(lost):
    whole = take(make(), 12)
    stopped = make()
    take(stopped, 8)
    resumed = make()
    resumed.load_state_dict(stopped.state_dict() | {lost: 0})
    assert not same(take(resumed, 4), whole[8:])


def test_the_place_counts_batches_as_they_are_given():
    loader = make()
    places = [(loader.epoch, loader.position)]
    for _ in loader:
        places.append((loader.epoch, loader.position))
    assert places == [(0, position) for position in range(6)]
    assert (loader.epoch, loader.position) == (1, 0)


def test_a_loop_left_early_is_finished_by_the_next_one():
    loader = make()
    left = [batch for batch, _ in zip(loader, range(2), strict=False)]
    rest = list(loader)
    # zip asks the loader first, so it has given a third batch that nobody kept.
    assert (len(left), len(rest), loader.epoch) == (2, 2, 1)


def test_a_place_after_the_last_batch_gives_an_empty_loop_and_then_the_next_epoch():
    stopped = make()
    take(stopped, 5)
    resumed = make()
    resumed.load_state_dict(stopped.state_dict())
    assert list(resumed) == []
    assert (resumed.epoch, resumed.position) == (1, 0)
    assert len(list(resumed)) == 5


def test_going_elsewhere_within_a_loop_ends_it_or_moves_it():
    loader = make()
    batches = iter(loader)
    next(batches)
    start = loader.state_dict()
    next(batches)
    loader.load_state_dict(start)
    assert len(list(batches)) == 4
    batches = iter(loader)
    next(batches)
    loader.load_state_dict(start)
    assert list(batches) == []
    assert loader.state_dict() == start


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"count": 3}, "data.batch = 4 is more than the 3 training images: set data.batch to 3 or less"),
        ({"batch": 0}, "data.batch = 0 must be at least 1"),
        ({"seed": -1}, "train.seed = -1 must not be negative"),
    ],
)
def test_arguments_that_do_not_do(changes, message):
    with pytest.raises(UserError) as caught:
        make(**changes)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 4}, "the loader's state has seed = 4, this run has 3: resume with the data settings and"),
        ({"images": 50}, "the loader's state has images = 50, this run has 22: "),
        ({"batch": 8}, "the loader's state has batch = 8, this run has 4: "),
        ({"position": 6}, "the loader's state has epoch = 0 and position = 6, outside an epoch's 5 batches"),
        ({"position": -1}, "the loader's state has epoch = 0 and position = -1, outside"),
        ({"epoch": -1}, "the loader's state has epoch = -1 and position = 0, outside"),
        (
            {"extra": 1},
            "the loader's state holds ['batch', 'epoch', 'extra', 'images', 'position', 'seed'], ",
        ),
    ],
)
def test_states_that_do_not_fit_change_nothing(changes, message):
    loader = make()
    take(loader, 2)
    before = loader.state_dict()
    with pytest.raises(UserError) as caught:
        loader.load_state_dict({**make().state_dict(), **changes})
    assert str(caught.value).startswith(message)
    assert loader.state_dict() == before
