"""Exports read by others: torchvision's own classes and torch's own loader, with the same logits."""

import copy
import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn
from torchvision.models.convnext import CNBlockConfig, ConvNeXt
from torchvision.models.resnet import BasicBlock, ResNet
from torchvision.models.vgg import VGG, make_layers
from torchvision.models.vision_transformer import VisionTransformer

from mlaan import Engine, UserError, export
from mlaan.models import CifarResNet, as_backbone, build

SHAPE = (3, 64, 64)


def vgg() -> VGG:
    """Its names, with narrower linear layers: they would be half a gigabyte."""
    with torch.device("meta"):
        net = VGG(nn.Identity())
    net.features = make_layers([8, "M", 16, "M", 512, "M"], batch_norm=True)
    layers = [nn.Linear(512 * 7 * 7, 8), nn.ReLU(True), nn.Dropout(), nn.Linear(8, 8), nn.ReLU(True), nn.Dropout()]
    net.classifier = nn.Sequential(*layers, nn.Linear(8, 5))
    return net


FAMILIES = {
    "resnet": lambda: ResNet(BasicBlock, [1, 1, 1, 1], num_classes=5),
    "vgg": vgg,
    "convnext": lambda: ConvNeXt([CNBlockConfig(8, 16, 1), CNBlockConfig(16, None, 2)], 0.1, num_classes=5),
    "vit": lambda: VisionTransformer(64, 16, 2, 2, 16, 32, num_classes=5),
}


def trained(family: str) -> nn.Module:
    """With weights and running statistics that no fresh net has; in training mode."""
    torch.manual_seed(0)
    net = FAMILIES[family]()
    for value in net.state_dict().values():
        if value.is_floating_point():
            value.add_(0.1 * torch.rand_like(value))
    return net


@pytest.mark.parametrize("family", FAMILIES)
def test_a_file_loads_into_torchvisions_class_and_a_program_runs(tmp_path, family):
    net = trained(family)
    exported = export.save(as_backbone(net, SHAPE), tmp_path / "out", SHAPE)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["model.pt2", "model.safetensors"]
    assert all(difference < 1e-5 for difference in exported.differences.values())
    assert net.training
    assert len({path.stat().st_mode for path in (tmp_path / "out").iterdir()}) == 1, "who may read it differs"
    images = torch.randn(5, *SHAPE)
    expected = copy.deepcopy(net).eval()(images)
    theirs = FAMILIES[family]()
    theirs.load_state_dict(load_file(tmp_path / "out" / "model.safetensors"), strict=True)
    assert torch.equal(theirs.eval()(images), expected)
    program = torch.export.load(tmp_path / "out" / "model.pt2").module()
    torch.testing.assert_close(program(images), expected)
    torch.testing.assert_close(program(images[:1]), expected[:1])


def test_an_engines_heads_are_dropped_and_its_facts_kept(tmp_path):
    torch.manual_seed(0)
    engine = Engine(
        CifarResNet(20, 7, 1), "mlaan", 3, input_shape=(1, 16, 16), normalisation=((0.3,), (0.2,)), preset="light"
    )
    for _ in range(2):
        engine.step(torch.randn(4, 1, 16, 16), torch.randint(7, (4,)))
    exported = export.save(engine, tmp_path, form="safetensors", about={"run": "second"})
    assert list(exported.differences) == [tmp_path / "model.safetensors"]
    state = engine.backbone.net.state_dict()
    written = load_file(tmp_path / "model.safetensors")
    assert written.keys() == state.keys()
    assert all(torch.equal(value, state[key]) for key, value in written.items())
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        facts = file.metadata()
    assert facts["backbone"] == "resnet20"
    assert (facts["classes"], facts["run"]) == ("7", "second")
    assert [json.loads(facts[key]) for key in ("image_shape", "mean", "std")] == [[1, 16, 16], [0.3], [0.2]]
    assert build("resnet20", 7, 1, weights=str(tmp_path / "model.safetensors"))


def test_weights_in_other_layouts_and_shared_ones(tmp_path):
    net = CifarResNet(20)
    net.to(memory_format=torch.channels_last)
    net.bn1.running_var = net.bn1.running_mean
    export.save(as_backbone(net), tmp_path, SHAPE, form="safetensors")
    CifarResNet(20).load_state_dict(load_file(tmp_path / "model.safetensors"))


def test_a_file_that_came_out_wrong_is_not_left(tmp_path, monkeypatch):
    (tmp_path / "model.safetensors").write_bytes(b"the old one")
    right = export._write_weights

    def wrong(net, path, metadata, images):
        spoiled = copy.deepcopy(net)
        spoiled.fc.bias.data += 0.01
        right(spoiled, path, metadata, images)

    monkeypatch.setattr(export, "_write_weights", wrong)
    with pytest.raises(UserError, match=r"model.safetensors would differ from resnet20 by .* so it was not written"):
        export.save(as_backbone(CifarResNet(20)), tmp_path, SHAPE)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    assert (tmp_path / "model.safetensors").read_bytes() == b"the old one"


def test_a_diverged_network(tmp_path):
    net = CifarResNet(20)
    nn.init.constant_(net.fc.bias, torch.nan)
    with pytest.raises(UserError, match=r"the logits of resnet20 are not finite: export weights from before"):
        export.save(as_backbone(net), tmp_path / "out", SHAPE)
    assert not (tmp_path / "out").exists()


def test_a_net_that_cannot_be_traced(tmp_path):
    class Decides(CifarResNet):
        def forward(self, images):
            logits = super().forward(images)
            return logits if logits.sum() > 0 else -logits

    backbone = as_backbone(Decides(20))
    with pytest.raises(UserError, match=r"torch.export cannot trace Decides \(.*write the weights alone, --format"):
        export.save(backbone, tmp_path, SHAPE)
    assert not list(tmp_path.iterdir())
    assert export.save(backbone, tmp_path, SHAPE, form="safetensors")


def test_folders_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "more"):
        with pytest.raises(UserError, match=rf"cannot write into {folder}: .*: give another --out"):
            export.save(as_backbone(CifarResNet(20)), folder, SHAPE, form="safetensors")


def test_a_backbone_does_not_know_its_images(tmp_path):
    with pytest.raises(UserError, match=r"image_shape = None: say the shape"):
        export.save(as_backbone(CifarResNet(20)), tmp_path)
