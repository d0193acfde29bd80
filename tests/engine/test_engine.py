"""The Python interface: what a person with an own loop uses."""

import io

import numpy as np
import pytest
import torch
from torch import nn

from mlaan import MLAAN, Backbone, Engine, UserError
from mlaan.models import CifarResNet, build


def make(seed=0, method="mlaan", modules=4, **settings):
    torch.manual_seed(seed)
    return Engine(CifarResNet(20), method, modules, input_shape=(3, 16, 16), **settings)


def batch(seed=0, samples=8, size=16):
    random = torch.Generator().manual_seed(seed)
    return torch.randn(samples, 3, size, size, generator=random), torch.randint(10, (samples,), generator=random)


def test_a_step_tells_losses_and_accuracy_per_head():
    engine = make()
    result = engine.step(*batch())
    assert result.losses.shape == result.correct.shape == (len(engine.loss_names),) == (7,)
    assert engine.loss_names[:2] == ("0.independent", "0.cascaded")
    assert engine.loss_modules == (0, 0, 1, 1, 2, 2, 3)
    assert ((result.accuracy >= 0) & (result.accuracy <= 1)).all()
    assert result.samples == 8


@pytest.mark.parametrize("method", ["mlaan", "dgl", "end_to_end"])
@pytest.mark.parametrize("backbone", ["resnet20", "resnet18"])
def test_it_memorises_a_batch(method, backbone):
    torch.manual_seed(0)
    engine = Engine(build(backbone, 10), method, 4, input_shape=(3, 16, 16), learning_rate=0.02)
    images, labels = batch(samples=32)
    for _ in range(25):
        result = engine.step(images, labels)
    assert result.accuracy[-1] > 0.98
    assert result.losses[-1] < 0.5


def test_evaluation_is_the_backbone_alone_on_every_image():
    engine = make()
    engine.step(*batch())
    batches = [batch(1), batch(2, samples=3)]
    found = engine.evaluate(batches)
    engine.backbone.net.eval()
    with torch.no_grad():
        logits = torch.cat([engine.backbone.net(x) for x, _ in batches])
    labels = torch.cat([y for _, y in batches])
    assert found.samples == 11
    assert found.top1 == pytest.approx((logits.argmax(1) == labels).double().mean().item())
    assert found.loss == pytest.approx(nn.functional.cross_entropy(logits, labels).item(), rel=1e-6)
    with pytest.raises(UserError, match="nothing to evaluate on"):
        engine.evaluate([])


def test_evaluation_moves_nothing_and_leaves_training_mode():
    engine = make()
    before = {name: t.clone() for name, t in engine.backbone.net.state_dict().items()}
    engine.evaluate([batch()])
    assert all(torch.equal(t, before[name]) for name, t in engine.backbone.net.state_dict().items())
    assert engine.backbone.net.training


def test_a_saved_state_continues_bit_for_bit():
    straight, first, second = make(), make(), make(seed=5)
    for i in range(2):
        straight.step(*batch(i))
        first.step(*batch(i))
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second.load_state_dict(torch.load(file, weights_only=True))
    for i in range(2, 4):
        straight.step(*batch(i))
        second.step(*batch(i))
    for part in ("backbone", "heads", "optimizer"):
        ours, theirs = second.state_dict()[part], straight.state_dict()[part]
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    without = make(seed=5)
    state = first.state_dict() | {"optimizer": {}}
    without.load_state_dict(state)
    without.step(*batch(2))
    assert not torch.equal(without.backbone.net.fc.weight, straight.backbone.net.fc.weight)


def test_loading_replaces_momenta_and_learning_rate():
    fresh, used = make(), make(seed=1)
    used.step(*batch())
    used.learning_rate = 0.3
    fresh.learning_rate = 0.7
    used.load_state_dict(fresh.state_dict())
    assert used.learning_rate == 0.7
    used.step(*batch(4))
    fresh.step(*batch(4))
    for ours, theirs in zip(used.backbone.net.parameters(), fresh.backbone.net.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_state_of_something_else_is_refused():
    engine = make()
    for other in (make(modules=3), make(method="dgl"), make(reach=1)):
        with pytest.raises(UserError, match="this state was made for resnet20 with 10 classes"):
            engine.load_state_dict(other.state_dict())
    state = engine.state_dict()
    state["backbone"] = {k: v for k, v in state["backbone"].items() if k != "conv1.weight"}
    with pytest.raises(UserError, match=r"backbone.conv1.weight of the state does not fit resnet20"):
        engine.load_state_dict(state)


def test_the_learning_rate_can_be_set_before_any_step():
    engine = make(learning_rate=0.0, weight_decay=0.0)
    before = engine.backbone.net.fc.weight.clone()
    engine.step(*batch())
    assert torch.equal(engine.backbone.net.fc.weight, before)
    engine.learning_rate = 0.1
    engine.step(*batch())
    assert not torch.equal(engine.backbone.net.fc.weight, before)


def test_gradients_moves_no_weight():
    engine = make()
    before = {name: p.clone() for name, p in engine.backbone.net.named_parameters()}
    engine.gradients(*batch())
    for name, p in engine.backbone.net.named_parameters():
        assert torch.equal(p, before[name])
        assert p.grad is not None
    assert engine.backbone.net.bn1.num_batches_tracked == 1


def test_a_model_of_ones_own():
    torch.manual_seed(0)
    stem = nn.Conv2d(3, 8, 3)
    blocks = [nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()) for _ in range(5)]
    classifier = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Linear(8, 10))
    net = nn.Sequential(stem, *blocks, classifier)
    engine = Engine(Backbone(net, stem, blocks, classifier), MLAAN(reach=3), 5, input_shape=(3, 16, 16))
    assert torch.isfinite(engine.step(*batch()).losses).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"modules": 10}, r"partition.modules = 10 does not fit resnet20: it has 9 blocks"),
        ({"modules": 0}, r"partition.modules = 0 must be at least 1"),
        ({"reach": 0}, r"method.reach = 0"),
        ({"method": "mlan"}, r"mlan.*mlaan"),
        ({"schedule": "fast"}, r"memory.schedule = 'fast' must be 'lean', 'full' or 'windowed'"),
        ({"recompute": "all"}, r"memory.recompute = 'all' must be '"),
        ({"schedule": "windowed"}, r"memory.window = 0 does not fit"),
        ({"schedule": "windowed", "window": 1}, r"memory.window = 1 must be from 2"),
        ({"learning_rate": -1.0}, r"optim.learning_rate = -1.0"),
        ({"preset": "lite"}, r"method.preset = 'lite' must be 'light'"),
        ({"mlm": "no"}, r"method.mlm = 'no' must be"),
        ({"method": MLAAN(twins="frist")}, r"method.twins = 'frist' must be 'first'"),
        ({"learning_rate": "0.1"}, r"optim.learning_rate = '0.1' must be"),
        ({"modules": 2.0}, r"partition.modules = 2.0 must be"),
        (
            {"method": "end_to_end", "preset": "light"},
            r"'preset' is no keyword of Engine and no setting of .*end_to_end",
        ),
        ({"executr": "graph"}, r"did you mean 'executor'"),
        ({"optimizer": "adamw"}, r"did you mean 'optim'"),
        ({"optim": "adam"}, r"optim = 'adam' must be one of adamw"),
        ({"optim": "adamw", "momentum": 0.9}, r"optim.momentum is no setting"),
        ({"method": MLAAN(), "reach": 3}, r"'reach' belongs into the method's own config"),
        ({"speed": 3}, r"'speed' is no keyword of Engine.*: (did you mean|choose from)"),
    ],
)
def test_wrong_settings_name_the_key_and_the_fix(settings, message):
    with pytest.raises(UserError, match=message):
        make(**settings)


def test_wrong_batches():
    engine = make()
    with pytest.raises(UserError, match=r"images of 3x32x32 .* engine made for 3x16x16"):
        engine.step(*batch(size=32))
    images, labels = batch()
    with pytest.raises(UserError, match="do not go with 8 images"):
        engine.step(images, labels[:5])
    with pytest.raises(UserError, match=r"torch.float32 do not go with 8 images: give one int64 class for each"):
        engine.step(images, labels.float())
    with pytest.raises(UserError, match="the batch is empty"):
        engine.step(images[:0], labels[:0])
    with pytest.raises(UserError, match="labels are a list"):
        engine.step(images, labels.tolist())
    with pytest.raises(UserError, match=r"learning_rate = nan must be a finite number"):
        engine.learning_rate = float("nan")
    engine.learning_rate = np.float32(0.25)
    assert type(engine.state_dict()["learning_rate"]) is float  # as loading wants it
    with pytest.raises(UserError, match=r"learning_rate = '0.1' must be a finite number"):
        engine.learning_rate = "0.1"
    with pytest.raises(UserError, match=r"must hold \(images, labels\) pairs: write \[\(images, labels\)\]"):
        engine.evaluate((images, labels))
    with pytest.raises(UserError, match=r"method = MLAAN is a class: give an object of it, MLAAN\(\)"):
        Engine(CifarResNet(20), MLAAN)
    with pytest.raises(UserError, match=r"input_shape = 32 must be \(C, H, W\)"):
        Engine(CifarResNet(20), input_shape=32)
    with pytest.raises(UserError, match=r"method = 'companion' must be one of .*; your own: import its module first"):
        Engine(CifarResNet(20), "companion")
    with pytest.raises(UserError, match="label 10 is not from 0 to 9"):
        engine.step(images, labels.clamp(max=9) * 0 + 10)
    with pytest.raises(UserError, match=r"images are torch.uint8, the model's weights torch.float32"):
        engine.step((images * 20).to(torch.uint8), labels)


def test_one_image_is_refused_only_where_a_batchnorm_needs_two():
    engine = make()
    assert torch.isfinite(engine.step(*batch(samples=1)).losses).all()
    deep = Engine(build("resnet18", 10), "mlaan", 4, input_shape=(3, 16, 16), preset="light")
    before = {name: t.clone() for name, t in deep.backbone.net.state_dict().items()}
    with pytest.raises(UserError, match=r"a batch of one image is too small for a BatchNorm"):
        deep.step(*batch(samples=1))
    assert all(torch.equal(t, before[name]) for name, t in deep.backbone.net.state_dict().items())


def test_half_precision_weights_are_refused():
    with pytest.raises(UserError, match=r"the model's weights are torch.bfloat16: make it float32 or float64"):
        Engine(CifarResNet(20).bfloat16(), input_shape=(3, 16, 16))


@pytest.mark.parametrize("spoil", [{"optimizer": {"backbone.none": torch.zeros(1)}}, {"learning_rate": None}])
def test_a_state_that_does_not_fit_changes_nothing(spoil):
    engine, other = make(), make(seed=1)
    other.step(*batch())
    before = {name: t.clone() for name, t in engine.backbone.net.state_dict().items()}
    with pytest.raises(UserError, match=r"of the (optimizer's )?state"):
        engine.load_state_dict(other.state_dict() | spoil)
    assert all(torch.equal(t, before[name]) for name, t in engine.backbone.net.state_dict().items())
