"""timm's models: names, sizes and the same logits as timm's own, where the package is installed."""

import importlib.util

import pytest
import torch

from mlaan import UserError
from mlaan.models import build

needs_timm = pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="the package timm is not installed")

MODELS = [  # of a size that takes fractions of a second; Swin's own maps are (N, H, W, C)
    ("resnet10t", (3, 64, 64), 4, "4.0", (512, 2, 2)),
    ("vit_tiny_patch16_224", (3, 64, 64), 12, "1.11", (17, 192)),
    ("convnext_atto", (1, 64, 64), 12, "4.1", (320, 2, 2)),
    ("swin_tiny_patch4_window7_224", (3, 56, 56), 12, "4.1", (768, 2, 2)),
    ("mobilenetv3_small_050", (3, 64, 64), 12, "5.0", (288, 2, 2)),
    ("regnety_002", (3, 64, 64), 13, "4.6", (368, 2, 2)),
]


@needs_timm
@pytest.mark.parametrize(("name", "shape", "blocks", "last", "output"), MODELS, ids=[name for name, *_ in MODELS])
def test_the_view_computes_what_timms_net_does(name, shape, blocks, last, output):
    import timm

    torch.manual_seed(0)
    backbone = build(f"timm:{name}", 7, shape[0], shape[1:])
    assert (backbone.name, backbone.num_classes) == (f"timm:{name}", 7)
    assert (len(backbone.blocks), backbone.blocks[-1].label) == (blocks, last)
    assert backbone.block_shapes(shape)[-1] == output
    fixed = timm.get_pretrained_cfg(name).fixed_input_size
    options = {"img_size": shape[1:]} if fixed else {}
    theirs = timm.create_model(name, num_classes=7, in_chans=shape[0], **options).eval()
    theirs.load_state_dict(backbone.net.state_dict())
    torch.nn.init.normal_(backbone.last_layer.weight)
    theirs.load_state_dict(backbone.net.state_dict())
    images = torch.randn(2, *shape)
    with torch.no_grad():
        backbone.net.eval()
        assert torch.equal(backbone(images), theirs(images))


@needs_timm
def test_on_the_meta_device():
    with torch.device("meta"):
        backbone = build("timm:efficientnet_b0", 7, 3, (64, 64), "pretrained")  # nothing is fetched
    assert all(p.is_meta for p in backbone.net.parameters())
    assert len(backbone.blocks) == 16


@needs_timm
@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("timm:resnet_18", "is no model of timm .*: did you mean .*'timm:resnet18'"),
        ("timm:inception_v3", r"cannot be used as it is: model = InceptionV3 .*docs/backbones.md shows"),
        ("timm:vit_tiny_patch16_224", r"cannot be used as it is: images of 3x8x8 .* do not fit"),
    ],
)
def test_what_cannot_be_used(name, says):
    with pytest.raises(UserError, match=says):
        build(name, 10, 3, (8, 8) if "vit" in name else (96, 96))


def test_without_timm(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "timm" else find(name, *rest))
    with pytest.raises(UserError, match=r"model.name = 'timm:resnet18' needs the package 'timm': pip install 'mlaan\["):
        build("timm:resnet18", 10)


@needs_timm
def test_pretrained_weights_without_a_network(monkeypatch):
    import timm

    def create(*_, pretrained, **__):
        assert pretrained
        raise OSError("no route to host")

    monkeypatch.setattr(timm, "create_model", create)
    with pytest.raises(UserError, match=r"OSError: no route to host: its weights need a network or timm's cache"):
        build("timm:resnet18", 10, weights="pretrained")


@needs_timm
def test_pretrained_weights_for_other_classes(monkeypatch):
    import timm

    create, asked = timm.create_model, []

    def without_network(name, *, pretrained, **options):
        asked.append(pretrained)
        return create(name, **options)

    monkeypatch.setattr(timm, "create_model", without_network)
    with pytest.warns(UserWarning, match=r"'pretrained' has 1000 classes, the data have 10: the last layer starts"):
        build("timm:resnet18", 10, 3, (64, 64), "pretrained")
    assert asked == [True]
