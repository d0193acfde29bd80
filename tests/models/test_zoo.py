"""Every backbone by name: torchvision's names and sizes, a view that computes what the net does, errors."""

from functools import cache
from itertools import groupby

import pytest
import torch
import torchvision.models as tv
from torchvision.models.vision_transformer import VisionTransformer

from mlaan import UserError
from mlaan.learning.published import PUBLISHED_ENDS, PUBLISHED_LEAPS
from mlaan.models import BACKBONES, build

SIZE = {name: (32, 32) if "cifar" in name else (64, 64) for name in BACKBONES} | {"vit_b_16": (224, 224)}
PARAMETERS = {  # in millions at ten classes, as their papers and the codes for CIFAR say; vit_s_16 at 64x64
    "resnet20": 0.27, "resnet32": 0.47, "resnet44": 0.66, "resnet56": 0.86, "resnet110": 1.73, "resnet1202": 19.4,
    "vgg11_cifar": 9.2, "vgg13_cifar": 9.4, "vgg16_cifar": 14.7, "vgg19_cifar": 20.0, "vit_s_16": 21.6,
}  # fmt: skip
TORCHVISIONS = [name for name in BACKBONES if name not in PARAMETERS or name == "vit_s_16"]
SMALL = ["resnet44", "vgg11_cifar", "convnext_tiny", "vit_s_16"]


def parameters(net) -> int:
    return sum(p.numel() for p in net.parameters())


@cache
def ours(name: str):
    """On the meta device; with 1000 classes where torchvision has it, else with ten."""
    with torch.device("meta"):
        return build(name, 10 if name in PARAMETERS else 1000, 3, SIZE[name])


def theirs(name: str):
    """torchvision's own, on the meta device."""
    with torch.device("meta"):
        if name == "vit_s_16":
            return VisionTransformer(64, 16, 12, 6, 384, 1536, num_classes=10)
        return tv.get_model(name, weights=None)


@pytest.mark.parametrize("name", BACKBONES)
def test_on_the_meta_device(name):
    """Its view reaches every weight, its stages are runs of one size, and the images fit."""
    backbone = ours(name)
    assert all(p.is_meta for p in backbone.net.parameters())
    assert backbone.num_classes == (10 if name in PARAMETERS else 1000)
    assert backbone.name == name
    if name == "resnet1202":
        return  # 600 blocks take seconds, and no other code
    shapes = backbone.block_shapes((3, *SIZE[name]))
    stages = [block.stage for block in backbone.blocks]
    runs = [stage for (stage, _), _ in groupby(zip(stages, shapes, strict=True))]
    assert runs == list(range(1, stages[-1] + 1))


@pytest.mark.parametrize("name", TORCHVISIONS)
def test_names_and_sizes_are_torchvisions(name):
    net, expected = ours(name).net, theirs(name)
    assert type(net) is type(expected)
    assert {k: v.shape for k, v in net.state_dict().items()} == {k: v.shape for k, v in expected.state_dict().items()}
    if name not in PARAMETERS:
        assert parameters(net) == tv.get_model_weights(name)["DEFAULT"].meta["num_params"]


@pytest.mark.parametrize(("name", "millions"), PARAMETERS.items())
def test_numbers_of_parameters(name, millions):
    assert abs(parameters(ours(name).net) / 1e6 - millions) <= (0.05 if millions > 1 else 0.005) + 1e-9


@pytest.mark.parametrize("name", SMALL)
def test_the_view_computes_what_the_net_does(name):
    torch.manual_seed(0)
    backbone = build(name, 10, 3, SIZE[name])
    images = torch.randn(2, 3, *SIZE[name])
    backbone.net.eval()
    with torch.no_grad():
        for p in backbone.net.parameters():  # last layers and scales of blocks that are zero, or near it, at first
            p.add_(0.02 * torch.randn_like(p))
        logits = backbone.net(images)
        assert logits.std() > 0
        assert torch.equal(backbone(images), logits)


def test_the_published_tables_are_for_plain_resnets_alone():
    """A wide or grouped net with as many layers goes by another name."""
    named = {name for name, _ in (*PUBLISHED_ENDS, *PUBLISHED_LEAPS)}
    assert named == {"resnet32", "resnet110", "resnet34", "resnet101", "resnet152"}
    assert named <= set(BACKBONES)


def test_images_that_a_transformer_does_not_take():
    for size in ((28, 28), (32, 64)):
        with pytest.raises(UserError, match=rf"vit_s_16.*multiple of 16, not {size[0]}x{size[1]}"):
            build("vit_s_16", 10, 1, size)
    with pytest.raises(UserError, match=r"images of 3x48x48 .* do not fit vit_s_16"):
        build("vit_s_16", 10, 3, (32, 32)).block_shapes((3, 48, 48))


@pytest.mark.parametrize(
    ("name", "near"), [("resnet21", "'resnet20'"), ("resnt20", "'resnet20'"), ("vgg16_cifr", "'vgg16_cifar'")]
)
def test_an_unknown_name_gives_the_nearest(name, near):
    with pytest.raises(UserError, match=rf"model.name = '{name}' is not a backbone: did you mean .*{near}.*\?"):
        build(name, 10)


def test_a_strange_name_gives_all():
    with pytest.raises(UserError, match=r"choose from resnet20, .*vit_b_16, timm:NAME or FILE.py:FUNCTION"):
        build("?", 10)
    with pytest.raises(UserError, match=r"so did you mean 'my_model.py:make'\?"):
        build("my_model:make", 10)


def test_the_same_seed_gives_the_same_weights():
    nets = []
    for _ in range(2):
        torch.manual_seed(3)
        nets.append(build("vgg11_cifar", 10, 1).net.state_dict())
    assert all(torch.equal(value, nets[1][key]) for key, value in nets[0].items())
