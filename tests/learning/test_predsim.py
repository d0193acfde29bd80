"""PredSim: its head, its loss, its list of losses."""

import pytest
import torch
from torch.nn import functional as F

from learning.tiny import batch, listed, make, make_vit, ratios
from mlaan import UserError
from mlaan.learning.methods import PredSim
from mlaan.learning.methods.predsim import PredSimHead, PredSimLoss
from mlaan_kernels.similarity_loss import similarity_loss


def test_one_loss_per_module():
    losses = make(PredSim()).supervision.losses
    assert listed(losses) == [("0.local", 1, 1.0), ("1.local", 1, 1.0), ("2.classifier", 1, 1.0)]
    assert all(loss.predicts for loss in losses)
    assert [tuple(loss.head.linear.weight.shape) for loss in losses[:-1]] == [(10, 16 * 8 * 8), (10, 32 * 4 * 4)]
    assert losses[0].head.linear.weight.eq(0).all()
    assert losses[1].head.convolution.weight.shape == (32, 32, 3, 3)
    assert losses[1].head.convolution.bias is None


@pytest.mark.parametrize(
    ("shape", "inputs", "size"),
    [
        ((16, 16, 16), 4096, (16, 16)), ((32, 16, 16), 4096, (8, 16)), ((64, 16, 16), 4096, (8, 8)),
        ((256, 7, 7), 4096, (4, 4)), ((2048, 7, 7), 4096, (1, 2)), ((8192, 7, 7), 4096, (1, 1)),
        ((17, 32), 4096, (4, 4)), ((17, 32), 128, (2, 2)),
    ],
)  # fmt: skip
def test_features_are_pooled_until_few_enough_are_left(shape, inputs, size):
    with torch.device("meta"):
        head = PredSimHead(shape, 10, inputs)
    assert head.size == size
    output = head(torch.empty(2, *shape, device="meta"))
    assert output.logits.shape == (2, 10)
    assert output.features.shape[2] * output.features.shape[3] == (shape[1] * shape[2] if len(shape) == 3 else 16)


def test_the_loss_is_the_mixture():
    torch.manual_seed(0)
    head, labels = PredSimHead((6, 4, 4), 5), torch.tensor([0, 1, 1, 4])
    torch.nn.init.normal_(head.linear.weight)
    h = torch.randn(4, 6, 4, 4)
    logits, features = head.linear(h.flatten(1)), F.conv2d(h, head.convolution.weight, padding=1)
    expected = 0.3 * F.cross_entropy(logits, labels) + 0.7 * similarity_loss(features, labels, 5)
    assert PredSimLoss(0.7, 5)(head(h), torch.empty(0), labels).item() == pytest.approx(expected.item())


def test_losses_fall():
    assert (ratios(make(PredSim())) < 0.8).all()
    assert (ratios(make_vit(PredSim())) < 0.9).all()


@pytest.mark.parametrize("labels", [[3], [3, 3, 3], [0, 1, 2, 2]], ids=["one_image", "one_class", "one_member"])
def test_small_batches_train(labels):
    engine, (images, _) = make(PredSim()), batch(len(labels))
    engine.step(images, torch.tensor(labels))
    assert all(torch.isfinite(p).all() for p in [*engine.backbone.net.parameters(), *engine.heads.parameters()])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"share": 1.5}, "method.share = 1.5 must be from 0 to 1"),
        ({"inputs": 0}, "method.inputs = 0 must be at least 1"),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(UserError, match=message):
        PredSim(**settings)
