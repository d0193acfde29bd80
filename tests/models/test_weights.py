"""Weights from elsewhere: files and torchvision's cache; a new head is said, another net refused."""

import pickle
import urllib.error

import pytest
import torch
import torchvision.models as tv
from safetensors.torch import save_file
from torchvision.models.vision_transformer import interpolate_embeddings

from mlaan import UserError
from mlaan.models import build


def equal(net, state) -> set[str]:
    """Names of the tensors that are as in `state`."""
    return {key for key, value in net.state_dict().items() if key in state and torch.equal(value, state[key])}


@pytest.fixture(scope="module")
def state():
    torch.manual_seed(1)
    return build("resnet20", 10).net.state_dict()


@pytest.mark.parametrize("end", ["safetensors", "pth", "pt", "wrapped.pth"])
def test_files(tmp_path, state, end, recwarn):
    path = tmp_path / f"net.{end}"
    save_file(state, path) if end == "safetensors" else torch.save(
        {"state_dict": state, "epoch": 3} if end == "wrapped.pth" else state, path
    )
    backbone = build("resnet20", 10, weights=str(path))
    assert equal(backbone.net, state) == set(state)
    assert not recwarn


def test_another_number_of_classes_starts_a_new_head_and_says_so_once(tmp_path, state):
    torch.save(state, tmp_path / "net.pth")
    with pytest.warns(UserWarning, match=r"has 10 classes, the data have 7: the last layer, fc, starts afresh") as said:
        backbone = build("resnet20", 7, weights=str(tmp_path / "net.pth"))
    assert len(said) == 1
    assert equal(backbone.net, state) == {key for key in state if not key.startswith("fc.")}
    assert backbone.net.fc.weight.std() > 0


def test_files_without_counters_of_batches(tmp_path, state):
    older = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    torch.save(older, tmp_path / "net.pth")
    assert equal(build("resnet20", 10, weights=str(tmp_path / "net.pth")).net, older) == set(older)


@pytest.mark.parametrize(
    ("name", "channels", "says"),
    [
        ("resnet32", 3, r"does not fit resnet32: layer1.3.conv1.weight is missing there and 16x16x3x3 here"),
        ("resnet20", 1, r"does not fit resnet20: conv1.weight is 16x3x3x3 there and 16x1x3x3 here"),
        ("vgg11_cifar", 3, r"does not fit vgg11_cifar: features.0.weight is missing there"),
    ],
)
def test_weights_of_another_net(tmp_path, state, name, channels, says):
    torch.save(state, tmp_path / "net.pth")
    with pytest.raises(UserError, match=says):
        build(name, 10, channels, weights=str(tmp_path / "net.pth"))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "is no file: give a .safetensors, .pth or .pt file, or 'pretrained'"),
        (b"", "cannot be read"),
        (b"PK\x03\x04 cut short", "cannot be read|holds more than tensors"),
        (pickle.dumps(urllib.error.URLError("x"), 2), "holds more than tensors, and nothing in it was executed"),
        ({"format": 1, "engine": {"backbone": {}}}, "is a checkpoint of a run: `mlaan export"),
        ({"a": 1}, "is no state dict"),
        ([1], "is no state dict"),
    ],
)
@pytest.mark.parametrize("end", ["pth", "safetensors"])
def test_files_that_hold_no_weights(tmp_path, content, says, end):
    path = tmp_path / f"net.{end}"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    if end == "safetensors" and content is not None:
        says = "cannot be read"
    with pytest.raises(UserError, match=says) as caught:
        build("resnet20", 10, weights=str(path))
    assert "\n" not in str(caught.value)


def test_pretrained_weights_out_of_torchvisions_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    torch.manual_seed(2)
    theirs = tv.resnet18().state_dict()
    cached = tmp_path / "hub" / "checkpoints" / tv.ResNet18_Weights.DEFAULT.url.rpartition("/")[2]
    cached.parent.mkdir(parents=True)
    torch.save(theirs, cached)
    with pytest.warns(UserWarning, match=r"'pretrained' has 1000 classes, the data have 10"):
        backbone = build("resnet18", 10, weights="pretrained")
    assert equal(backbone.net, theirs) == {key for key in theirs if not key.startswith("fc.")}


def test_pretrained_weights_without_a_network(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def fail(*_, **__):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    with pytest.raises(UserError, match=rf"needs https://\S*resnet18\S* once.*no route.*into {tmp_path}/hub"):
        build("resnet18", 10, weights="pretrained")


@pytest.mark.parametrize("name", ["resnet20", "vit_s_16", "vgg16_cifar"])
def test_nets_without_pretrained_weights(name):
    with pytest.raises(UserError, match=rf"torchvision has no weights for model.name = '{name}'"):
        build(name, 10, 3, (32, 32), "pretrained")


def test_position_embeddings_for_images_of_another_size(tmp_path):
    torch.manual_seed(0)
    large = build("vit_s_16", 10, 3, (64, 64)).net
    torch.save(large.state_dict(), tmp_path / "net.pth")
    with pytest.warns(UserWarning, match=r"is for 16 patches, the images have 4: its position embeddings are resized"):
        small = build("vit_s_16", 10, 3, (32, 32), str(tmp_path / "net.pth")).net
    expected = interpolate_embeddings(32, 16, large.state_dict())["encoder.pos_embedding"]
    assert torch.equal(small.state_dict()["encoder.pos_embedding"], expected)
    assert equal(small, large.state_dict()) == set(large.state_dict()) - {"encoder.pos_embedding"}


def test_on_the_meta_device_nothing_is_read():
    with torch.device("meta"):
        build("resnet20", 10, weights="no/such/file.pth")
