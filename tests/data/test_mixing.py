"""Soft labels: smoothed, mixed up, cut and pasted, each held to its definition image by image."""

import pytest
import torch
from torch.nn import functional as F

from data.batches import take
from data.test_memory import make
from mlaan.data import Mixing
from mlaan.data.dataset import Batch

CLASSES = 25


def mixing(seed=3, **asked):
    return Mixing(CLASSES, seed, **asked)


def loader(mixed=None):
    """Five batches an epoch."""
    made = make(augment=None)
    made.change = mixed
    return made


def pairs(count=10, **asked):
    """(batch as it was, batch that is mixed, how) of the first batches, over the ends of epochs."""
    mixed = mixing(**asked)
    ways = [mixed.mix(i // 5, i % 5, 6, 6) for i in range(count)]
    return list(zip(take(loader(), count), take(loader(mixed), count), ways, strict=True))


def neighbour(i, batch):
    """An image's partner: the one before it, of the first the last."""
    return batch.images[i - 1], batch.labels[i - 1]


def one_hot(label):
    return F.one_hot(label, CLASSES).float()


def test_smoothed_labels_give_the_loss_of_label_smoothing():
    for plain, soft, _ in pairs(label_smoothing=0.1):
        assert torch.equal(plain.images, soft.images)
        logits = torch.randn(len(plain.labels), CLASSES, dtype=torch.float64)
        wanted = F.cross_entropy(logits, plain.labels, label_smoothing=0.1)
        torch.testing.assert_close(F.cross_entropy(logits, soft.labels.double()), wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_mixup_averages_images_and_labels_by_one_share(smoothing):
    seen = set()
    for plain, mixed, way in pairs(mixup=0.4, label_smoothing=smoothing):
        assert way is not None
        assert way.box is None
        seen.add(way.share)
        for i, (image, label) in enumerate(zip(*plain, strict=True)):
            other, its_label = neighbour(i, plain)
            torch.testing.assert_close(mixed.images[i], way.share * image + (1 - way.share) * other)
            labels = way.share * one_hot(label) + (1 - way.share) * one_hot(its_label)
            torch.testing.assert_close(mixed.labels[i], (1 - smoothing) * labels + smoothing / CLASSES)
    assert len(seen) == 10, "every batch has a share of its own"


def test_cutmix_pastes_a_box_and_weighs_the_labels_by_its_real_area():
    areas = set()
    for plain, mixed, way in pairs(cutmix=1.0, count=20):
        assert way is not None
        top, left, height, width = way.box
        inside = torch.zeros(6, 6, dtype=torch.bool)
        inside[top : top + height, left : left + width] = True
        areas.add(int(inside.sum()))
        assert way.share == pytest.approx(1 - inside.double().mean().item())
        for i, (image, label) in enumerate(zip(*plain, strict=True)):
            other, its_label = neighbour(i, plain)
            assert torch.equal(mixed.images[i], torch.where(inside, other, image))
            labels = way.share * one_hot(label) + (1 - way.share) * one_hot(its_label)
            torch.testing.assert_close(mixed.labels[i], labels)
    assert len(areas) > 5


def test_both_take_turns_by_chance():
    boxes = [way.box is not None for _, _, way in pairs(mixup=0.2, cutmix=1.0, count=60)]
    assert 18 < sum(boxes) < 42


def test_shares_follow_the_beta_distribution_and_boxes_its_areas():
    """Mean 1/2 and variance 1 / (4 (2 a + 1)); a box that is cut off at the border is smaller than its share."""
    for strength in (0.2, 1.0):
        shares = torch.tensor([mixing(mixup=strength).mix(0, i, 6, 6).share for i in range(2000)])
        assert abs(shares.mean() - 0.5) < 0.04
        assert abs(shares.var() - 1 / (4 * (2 * strength + 1))) < 0.01
    ways = [mixing(cutmix=1.0).mix(0, i, 224, 160) for i in range(500)]
    assert all(0 <= top <= top + height <= 224 for top, _, height, _ in (way.box for way in ways))
    assert all(0 <= left <= left + width <= 160 for _, left, _, width in (way.box for way in ways))
    assert 0.5 < sum(way.share for way in ways) / 500 < 0.75


def test_the_way_depends_on_seed_epoch_and_number_alone():
    ways = {(s, e, n): mixing(s, mixup=1.0).mix(e, n, 6, 6) for s in range(2) for e in range(2) for n in range(2)}
    assert ways == {place: mixing(place[0], mixup=1.0).mix(*place[1:], 6, 6) for place in ways}
    assert len({way.share for way in ways.values()}) == len(ways)


@pytest.mark.parametrize("done", [0, 3, 5, 7])
def test_a_resumed_loader_goes_on_with_the_same_bits(done):
    mixed = mixing(mixup=0.2, cutmix=1.0, label_smoothing=0.1)
    batches = take(loader(mixed), 12)
    first, second = loader(mixed), loader(mixing(mixup=0.2, cutmix=1.0, label_smoothing=0.1))
    take(first, done)
    second.load_state_dict(first.state_dict())
    for mine, theirs in zip(take(second, 12 - done), batches[done:], strict=True):
        assert torch.equal(mine.images, theirs.images)
        assert torch.equal(mine.labels, theirs.labels)


def test_a_batch_that_is_left_out_moves_no_other():
    """The number of a batch is its place in the epoch, also after one of which nothing could be read."""
    whole, gappy = list(loader(mixing(mixup=1.0))), loader(mixing(mixup=1.0))
    batches = gappy.batches
    gappy.batches = lambda *place: (None if i == 1 else batch for i, batch in enumerate(batches(*place)))
    for mine, theirs in zip(gappy, [whole[0], *whole[2:]], strict=True):
        assert torch.equal(mine.images, theirs.images)


def test_memory_format_and_the_given_tensors_stay():
    images = torch.rand(4, 3, 8, 8).to(memory_format=torch.channels_last)
    kept, mixed = images.clone(), mixing(mixup=1.0, cutmix=1.0)
    for number in range(4):
        batch = mixed(Batch(images, torch.arange(4)), 0, number)
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(images, kept)
