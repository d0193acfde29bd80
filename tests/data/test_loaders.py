"""From a data section to its two loaders."""

from dataclasses import dataclass

import pytest
import torch

from mlaan.config import Choice, describe
from mlaan.data import Batch, Digits, FashionMNIST, Synthetic, loaders
from mlaan.errors import UserError


def test_train_is_shuffled_in_full_batches_and_test_is_whole_and_in_order():
    data, train, test = loaders(Synthetic(images=100, test_images=50, batch=16), "cpu", 0)
    assert (len(train), train.images_per_epoch) == (6, 96)
    assert (len(test), test.images_per_epoch) == (4, 50)
    assert torch.equal(torch.cat([batch.labels for batch in test]), data.test_labels)
    assert not torch.equal(torch.cat([batch.labels for batch in train]), data.train_labels[:96])


def test_training_images_are_normalised_to_mean_0_and_deviation_1():
    _, train, _ = loaders(Synthetic(images=512, batch=512), torch.device("cpu"), 0)
    (batch,) = train
    assert isinstance(batch, Batch)
    torch.testing.assert_close(batch.images.mean((0, 2, 3)), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(batch.images.std((0, 2, 3)), torch.ones(3), atol=1e-3, rtol=0)


def test_only_training_batches_are_augmented():
    pytest.importorskip("sklearn")
    data, train, test = loaders(Digits(batch=1438), "cpu", 0)
    (seen,) = train
    order = seen.labels.sort(stable=True).indices
    assert sorted(seen.labels.tolist()) == sorted(data.train_labels.tolist())
    black = (0 - data.mean[0]) / data.std[0]
    # A shifted digit loses a border; only a loader that augments can change how much ink there is in total.
    ink = (seen.images[order] - black).sum() * data.std[0] * 255
    assert float(ink) < 0.999 * float(data.train_images.double().sum())
    whole = torch.cat([batch.images for batch in test])
    ink = (whole.double() - black).sum() * data.std[0] * 255
    assert float(ink) == pytest.approx(float(data.test_images.double().sum()), rel=1e-4)


def test_seeds_give_different_orders_of_the_same_images():
    orders = [[batch.labels.tolist() for batch in loaders(Synthetic(), "cpu", seed).train] for seed in (0, 0, 1)]
    assert orders[0] == orders[1]
    assert orders[0] != orders[2]


def test_too_few_images_for_a_batch():
    with pytest.raises(UserError, match=r"^data\.batch = 2000 is more than the 1024 training images: set data\.batch"):
        loaders(Synthetic(batch=2000), "cpu", 0)


def test_a_member_that_is_no_source_is_a_mistake_of_its_author():
    class Family(Choice):
        """Stands for DataConfig, so that the real registry stays clean."""

    @dataclass(frozen=True)
    class Bare(Family, name="bare"):
        batch: int = 1

    with pytest.raises(TypeError, match=r"Bare must derive from mlaan\.data\.ImageSource too"):
        loaders(Bare(), "cpu", 0)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("member", [Digits, FashionMNIST, Synthetic])
def test_every_field_has_help(member):
    rows = describe(member)
    assert rows
    assert [row.key for row in rows if not row.help] == []
