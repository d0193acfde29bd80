"""A batch that is cut into parts: the gradient of the whole, one update, one move of the twins."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mlaan import Backbone, Engine
from mlaan.config import OptimConfig
from mlaan.errors import UserError
from mlaan.models import BACKBONES

SHAPE, CLASSES = (3, 8, 8), 5
METHODS = {
    "mlaan paper": {"method": "mlaan", "reach": 2},
    "mlaan light": {"method": "mlaan", "preset": "light", "reach": 3},
    "dgl": {"method": "dgl"},
    "end to end": {"method": "end_to_end"},
}


def plain_net(seed: int = 0) -> Backbone:
    """Without BatchNorm, so that a part of a batch does not feel the others."""
    torch.manual_seed(seed)
    stem = nn.Conv2d(3, 8, 3, padding=1)
    blocks = [nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.Tanh()) for _ in range(4)]
    classifier = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Linear(8, CLASSES))
    return Backbone(nn.Sequential(stem, *blocks, classifier).double(), stem, blocks, classifier)


def without_norms(module: nn.Module) -> None:
    """Heads have BatchNorm of their own: it is made to do nothing that depends on the batch."""
    for name, child in module.named_children():
        if isinstance(child, _BatchNorm):
            setattr(module, name, nn.Identity())
        else:
            without_norms(child)


def batch(count: int, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, *SHAPE, dtype=torch.float64, generator=generator)
    return images, torch.randint(CLASSES, (count,), generator=generator)


def trained(make: Callable[[], Engine], batches) -> dict:
    engine = make()
    results = [engine.step(*one) for one in batches]
    return {"state": copy.deepcopy(engine.state_dict()), "losses": torch.stack([result.losses for result in results])}


def largest_gap(a, b) -> float:
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        return max((largest_gap(a[key], b[key]) for key in a), default=0.0)
    if isinstance(a, torch.Tensor) and a.is_floating_point():
        return float((a - b).abs().max()) if a.numel() else 0.0
    return 0.0


@pytest.mark.parametrize("count", [12, 11], ids=["equal parts", "uneven parts"])
@pytest.mark.parametrize("clip", ["off", "global"])
@pytest.mark.parametrize("method", METHODS)
def test_parts_give_the_step_of_the_whole_batch(method, clip, count):
    """In float64: losses, every gradient through the update, momenta, twins."""

    def make(accumulate: int) -> Engine:
        torch.manual_seed(3)
        optim = OptimConfig.make("sgd", learning_rate=0.1, clip=clip, clip_norm=0.05)
        engine = Engine(
            plain_net(), modules=2, input_shape=SHAPE, accumulate=accumulate, optim=optim, **METHODS[method]
        )
        without_norms(engine.heads)
        return engine

    batches = [batch(count, seed) for seed in range(3)]
    whole = trained(lambda: make(1), batches)
    parts = trained(lambda: make(4), batches)
    assert largest_gap(whole["losses"], parts["losses"]) < 1e-12
    assert largest_gap(whole["state"], parts["state"]) < 1e-11
    other = trained(lambda: make(1), [batch(count, seed + 9) for seed in range(3)])
    assert largest_gap(whole["state"], other["state"]) > 1e-3, "the comparison cannot fail"


def test_right_answers_are_counted_over_all_parts():
    engine = Engine(plain_net(), "dgl", modules=2, input_shape=SHAPE, accumulate=3)
    again = Engine(plain_net(), "dgl", modules=2, input_shape=SHAPE)
    again.heads.load_state_dict(engine.heads.state_dict())
    images, labels = batch(12)
    found, wanted = engine.step(images, labels), again.step(images, labels)
    assert found.samples == 12
    assert found.correct[-1] == wanted.correct[-1]


def test_running_statistics_move_once_a_part_and_twins_once():
    torch.manual_seed(0)
    engine = Engine(BACKBONES["resnet20"](CLASSES, 3), modules=2, input_shape=SHAPE, accumulate=4)
    images, labels = batch(16)
    engine.step(images.float(), labels)
    tracked = [value for name, value in engine.backbone.net.state_dict().items() if name.endswith("batches_tracked")]
    per_pass = Engine(BACKBONES["resnet20"](CLASSES, 3), modules=2, input_shape=SHAPE)
    per_pass.step(images.float(), labels)
    once = [v for n, v in per_pass.backbone.net.state_dict().items() if n.endswith("batches_tracked")]
    assert [int(value) for value in tracked] == [4 * int(value) for value in once]


@pytest.mark.parametrize("count", [3, 5, 7])
def test_a_batch_that_bad_files_left_short_has_no_part_of_one_image(count):
    """BatchNorm over one value would end the run."""
    engine = Engine(BACKBONES["resnet18"](CLASSES, 3), "dgl", modules=2, input_shape=(3, 32, 32), accumulate=4)
    images = torch.randn(count, 3, 32, 32)
    assert engine.step(images, torch.arange(count) % CLASSES).samples == count


def test_gradients_that_were_there_before_count_as_they_are():
    images, labels = batch(12)

    def step(accumulate: int) -> dict:
        engine = Engine(plain_net(), "end_to_end", modules=1, input_shape=SHAPE, accumulate=accumulate)
        engine.gradients(*batch(6, 5))
        engine.step(images, labels)
        return copy.deepcopy(engine.state_dict())

    assert largest_gap(step(1), step(3)) < 1e-12


def test_a_part_that_overflows_keeps_its_module_from_being_updated():
    """float16: the verdict is on all parts, the scale is one for all of them."""
    torch.manual_seed(0)
    engine = Engine(
        BACKBONES["resnet20"](CLASSES, 3), "dgl", modules=2, input_shape=SHAPE, accumulate=2, precision="float16"
    )
    assert engine.loss_scale is not None
    for _ in range(8):  # until the scales are low enough
        engine.step(batch(8)[0].float(), batch(8)[1])
    before = copy.deepcopy(engine.state_dict())
    images, labels = batch(8)
    images = images.float()
    images[0] = torch.inf  # the first part is bad, the last is not
    engine.step(images, labels)
    after = engine.state_dict()
    skipped = before["loss_scale"]["skipped"]
    assert engine.loss_scale.skipped.tolist() == (skipped + 1).tolist()
    weights = [name for name, _ in engine.backbone.net.named_parameters()]
    assert all(torch.equal(before["backbone"][name], after["backbone"][name]) for name in weights)
    assert (engine.loss_scale.scales < before["loss_scale"]["scales"]).all()
    engine.load_state_dict(before)
    engine.step(batch(8)[0].float(), labels)
    assert engine.loss_scale.skipped.tolist() == skipped.tolist()
    assert not torch.equal(before["backbone"]["conv1.weight"], engine.state_dict()["backbone"]["conv1.weight"])


@pytest.mark.parametrize("executor", ["streams", "graph"])
def test_other_executors_are_refused(executor):
    with pytest.raises(UserError, match=r"train\.accumulate = 2.*train\.executor = 'eager'"):
        Engine(plain_net(), "dgl", modules=2, input_shape=SHAPE, accumulate=2, executor=executor)


def test_the_command_line_wants_equal_parts(capsys):
    from mlaan.cli import main

    words = ["train", "--data.name", "synthetic", "--data.batch", "10", "--train.accumulate", "4"]
    assert main(words) == 2
    assert "data.batch = 10 cannot be cut into train.accumulate = 4 equal parts: set data.batch = 8" in (
        capsys.readouterr().err
    )


def test_a_plan_is_of_a_part_with_the_gradients_that_wait():
    def peak(batch: int, accumulate: int) -> dict:
        engine = Engine(
            BACKBONES["resnet20"](10, 3), preset="light", modules=4, input_shape=(3, 32, 32), accumulate=accumulate
        )
        return engine.describe(batch)

    whole, part, alone = peak(64, 1), peak(16, 4), peak(16, 1)
    gradients = 4 * (part["weights"]["backbone"] + part["weights"]["heads"])
    held = part["plans"]["this plan"]["at_peak"]["held"]
    assert held == gradients + 3 * 16 * 3 * 32 * 32 * 4
    assert part["plans"]["this plan"]["peak_bytes"] == alone["plans"]["this plan"]["peak_bytes"] + held
    assert part["plans"]["this plan"]["peak_bytes"] < whole["plans"]["this plan"]["peak_bytes"]
