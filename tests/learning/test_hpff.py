"""HPFF: independent and cascaded losses, and what their heads read."""

import pytest
import torch

from learning.tiny import listed, make, make_vit, ratios
from mlaan import UserError
from mlaan.learning.heads import DGLHead
from mlaan.learning.methods import HPFF
from mlaan.learning.methods.hpff import FusedHead, fuse, fused_shape
from mlaan.learning.methods.infopro import InfoProHead


def test_losses():
    losses = make(HPFF()).supervision.losses
    assert listed(losses) == [
        ("0.independent", 1, 0.001), ("0.cascaded", 1, 0.999), ("1.independent", 1, 0.001), ("1.cascaded", 2, 0.999),
        ("2.classifier", 2, 1.0),
    ]  # fmt: skip
    heads = [loss.head for loss in losses[:-1]]
    assert len({id(head) for head in heads}) == 4
    assert all(isinstance(head, FusedHead) and isinstance(head.head, DGLHead) for head in heads)
    assert all(head.head.size == (1, 1) for head in heads)  # a quarter of 4 x 4 and of 2 x 2
    assert listed(make(HPFF(independent_weight=0.0, reach=3)).supervision.losses) == [
        ("0.cascaded", 1, 0.999), ("1.cascaded", 2, 0.999), ("2.classifier", 3, 1.0),
    ]  # fmt: skip


def test_patches_are_averaged():
    h = torch.randn(2, 5, 6, 4)
    quarters = [h[:, :, :3, :2], h[:, :, :3, 2:], h[:, :, 3:, :2], h[:, :, 3:, 2:]]
    torch.testing.assert_close(fuse(h, 2), sum(quarters) / 4)


def test_tokens_are_averaged_as_the_map_they_are_and_the_class_token_stays():
    h = torch.randn(2, 17, 5)
    image = h[:, 1:].unflatten(1, (4, 4))
    quarters = image[:, :2, :2], image[:, :2, 2:], image[:, 2:, :2], image[:, 2:, 2:]
    fused = fuse(h, 2)
    assert fused.shape == (2, 5, 5)
    assert torch.equal(fused[:, 0], h[:, 0])
    torch.testing.assert_close(fused[:, 1:], sum(quarters).flatten(1, 2) / 4)


@pytest.mark.parametrize("patches", [1, 2, 3])
@pytest.mark.parametrize("shape", [(5, 8, 8), (5, 7, 5), (5, 1, 1), (16, 5), (17, 5)])
def test_shape_of_the_average(shape, patches):
    assert tuple(fuse(torch.empty(2, *shape, device="meta"), patches).shape[1:]) == fused_shape(shape, patches)
    assert torch.allclose(fuse(torch.ones(2, *shape), patches), torch.tensor(1.0))


def test_over_infopro_the_decoder_alone_works_on_patches():
    """As the authors' code: no decoder in the independent loss, four painters whose losses add up in the cascaded."""
    losses = make(HPFF(base="infopro")).supervision.losses
    independent, cascaded = losses[0], losses[1]
    assert isinstance(independent.head, InfoProHead)
    assert independent.head.decoder is None
    assert independent.criterion.label == 1
    assert len(cascaded.head.decoder.painters) == 4
    assert cascaded.criterion.reconstruction == 4 * 5.0
    assert cascaded.criterion.label == 0.05


def test_one_patch_is_the_whole_map():
    assert isinstance(make(HPFF(patches=1)).supervision.losses[0].head, DGLHead)


@pytest.mark.parametrize("base", ["light", "dgl", "predsim", "infopro", "auglocal"])
def test_losses_fall(base):
    engine = make(HPFF(base=base))
    assert (ratios(engine)[[1, 3, 4]] < 0.95).all()  # the independent losses weigh next to nothing


@pytest.mark.parametrize("base", ["light", "dgl", "auglocal"])
def test_tokens(base):
    assert (ratios(make_vit(HPFF(base=base)))[[1, 3, 4]] < 0.95).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"patches": 0}, "method.patches = 0 must be at least 1"),
        ({"reach": 0}, "method.reach = 0 must be at least 1"),
        ({"cascaded_weight": -1.0}, "must not be negative"),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(UserError, match=message):
        HPFF(**settings)
