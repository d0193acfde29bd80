"""InfoPro: schedule of the weights, heads, decoder, losses."""

from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from learning.tiny import NORMALISATION, batch, listed, make, make_vit, ratios
from mlaan import UserError
from mlaan.learning.criteria import unnormalised
from mlaan.learning.decoder import Decoder, cut_patches
from mlaan.learning.methods import InfoPro
from mlaan.learning.methods.infopro import InfoProHead, InfoProLoss, InfoProOutput, label_head
from mlaan_kernels.contrast_loss import contrast_loss


@pytest.mark.parametrize("loss", ["softmax", "contrastive"])
def test_one_loss_per_module(loss):
    losses = make(InfoPro(loss=loss), 4).supervision.losses
    assert listed(losses) == [("0.local", 1, 1.0), ("1.local", 1, 1.0), ("2.local", 1, 1.0), ("3.classifier", 1, 1.0)]
    assert [loss.predicts for loss in losses] == [loss == "softmax"] * 3 + [True]
    weights = [(x.criterion.reconstruction, x.criterion.label) for x in losses[:-1]]
    assert weights == [pytest.approx(ends) for ends in ((5, 0.05), (2.6, 0.275), (0.2, 0.5))]


@pytest.mark.parametrize(("modules", "first", "last"), [(16, 5, 0.2), (3, 5, 0.2), (2, 5, 5)])
def test_weights_go_linearly_from_end_to_end(modules, first, last):
    method = InfoPro()
    reconstruction, label = zip(*(method.weights(i, modules) for i in range(modules - 1)), strict=True)
    assert (reconstruction[0], reconstruction[-1]) == pytest.approx((first, last))
    steps = [b - a for a, b in pairwise(label)]
    assert steps == pytest.approx([0.45 / (modules - 2)] * (modules - 2) if modules > 2 else [])


def layers(head):
    return [tuple(layer.weight.shape) for layer in head if isinstance(layer, nn.Linear)]


@pytest.mark.parametrize(
    ("shape", "widest", "width", "stride"),
    [
        ((16, 32, 32), 64, 32, 2), ((32, 16, 16), 64, 64, 2), ((64, 8, 8), 64, 64, 1),
        ((512, 28, 28), 2048, 512, 2), ((2048, 7, 7), 2048, 512, 1), ((17, 384), 384, 384, 1),
    ],
)  # fmt: skip
def test_heads_have_the_authors_shapes(shape, widest, width, stride):
    head = label_head(shape, 10, 128, widest)
    convolution = head[0][0]
    assert (convolution.out_channels, convolution.stride) == (width, (stride, stride))
    assert layers(head) == [(128, width), (10, 128)]


def test_contrastive_heads_give_an_embedding_and_no_logits():
    head = make(InfoPro(loss="contrastive", features=48)).supervision.losses[0].head
    output = head(torch.randn(4, 16, 8, 8))
    assert output.logits is None
    assert output.embedding.shape == (4, 48)
    assert output.pixels.shape == (4, 3, 8, 8)


@pytest.mark.parametrize("patches", [1, 2])
@pytest.mark.parametrize("shape", [(6, 4, 4), (6, 5, 3), (6, 1, 1), (17, 6)])
@pytest.mark.parametrize("image", [(3, 16, 16), (1, 9, 7)])
def test_decoder_paints_the_image(shape, image, patches):
    decoder = Decoder(shape, image, patches)
    assert len(decoder.painters) == patches**2
    h = torch.randn(2, *shape, requires_grad=True)
    pixels = decoder(h)
    assert pixels.shape == (2, *image)
    read = torch.autograd.grad(pixels.sum(), [h])[0].abs().sum(0).gt(0)
    assert read[-(shape[0] // 4) * 4 :].all() if len(shape) == 2 else read.all()


def test_every_patch_is_painted_from_its_own_features():
    decoder = Decoder((6, 4, 4), (3, 8, 8), 2).eval()
    h = torch.randn(1, 6, 4, 4, requires_grad=True)
    read = torch.autograd.grad(decoder(h)[:, :, :4, 4:].sum(), [h])[0].abs().sum((0, 1)).gt(0)
    assert read[:2, 2:].all()
    assert read.sum() == 4


@pytest.mark.parametrize(("size", "patches", "parts"), [((4, 6), 2, 4), ((5, 3), 2, 4), ((1, 1), 3, 9)])
def test_patches_are_equally_large_and_cover_the_map(size, patches, parts):
    h = torch.arange(size[0] * size[1], dtype=torch.float32).view(1, 1, *size)
    cut = cut_patches(h, patches)
    assert len(cut) == parts
    assert {part.shape for part in cut} == {cut[0].shape}
    assert {int(v) for part in cut for v in part.flatten()} == set(range(size[0] * size[1]))


def test_the_loss_is_the_weighted_sum():
    images, labels = batch(6)
    random = torch.Generator().manual_seed(1)
    logits, embedding = torch.randn(6, 10, generator=random), torch.randn(6, 8, generator=random)
    pixels = torch.randn(6, 3, 8, 8, generator=random)
    painted = F.binary_cross_entropy(pixels.sigmoid(), unnormalised(images, NORMALISATION))
    criterion = InfoProLoss(3.0, 0.7, 0.1, NORMALISATION)
    softmax = criterion(InfoProOutput(logits, None, pixels), images, labels)
    assert softmax.item() == pytest.approx((3 * painted + 0.7 * F.cross_entropy(logits, labels)).item(), rel=1e-5)
    contrast = criterion(InfoProOutput(None, embedding, pixels), images, labels)
    expected = 3 * painted + 0.7 * contrast_loss(embedding, labels, 0.1)
    assert contrast.item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_reconstruction_of_weight_zero_builds_no_decoder():
    method = InfoPro(first_reconstruction=1.0, last_reconstruction=0.0)
    first, last = (loss.head for loss in make(method).supervision.losses[:-1])
    assert isinstance(first, InfoProHead)
    assert first.decoder is not None
    assert last.decoder is None
    make(InfoPro(first_reconstruction=0, last_reconstruction=0), normalisation=None)


def test_unknown_normalisation_is_told_with_its_fix():
    with pytest.raises(UserError, match=r"normalisation = None: give Engine the normalisation=\(mean, std\)"):
        make(InfoPro(), normalisation=None)


@pytest.mark.parametrize("loss", ["softmax", "contrastive"])
def test_losses_fall(loss):
    method = InfoPro(loss=loss, first_label=1.0, last_label=2.0)
    assert (ratios(make(method)) < 0.8).all()
    assert (ratios(make_vit(method)) < 0.95).all()


@pytest.mark.parametrize("labels", [[3], [3, 3, 3], [0, 1, 2, 2]], ids=["one_image", "one_class", "one_member"])
def test_small_batches_train(labels):
    engine = make(InfoPro(loss="contrastive"))
    images, _ = batch(len(labels))
    engine.step(images, torch.tensor(labels))
    assert all(torch.isfinite(p).all() for p in [*engine.backbone.net.parameters(), *engine.heads.parameters()])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"last_label": -1.0}, "method.last_label = -1.0 must not be negative"),
        ({"features": 0}, "method.features = 0 must be at least 1"),
        ({"temperature": 0.0}, "method.temperature = 0.0 must be above 0"),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(UserError, match=message):
        InfoPro(**settings)
