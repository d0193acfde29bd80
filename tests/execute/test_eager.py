"""What the eager executor holds on to while it runs, and what it leaves behind."""

import pytest
import torch
from torch import nn

from mlaan import DGL, MLAAN, Backbone, EndToEnd, Engine, LocalLoss, Supervision, UserError
from mlaan.config import MemoryConfig, MethodConfig, PartitionConfig, SGDConfig
from mlaan.execute import step_state
from mlaan.learning.heads import PoolLinear
from mlaan.models import CifarResNet


def small_net(blocks=4):
    stem = nn.Conv2d(3, 4, 3, padding=1)
    parts = [nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()) for _ in range(blocks)]
    classifier = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Linear(4, 10))
    return Backbone(nn.Sequential(stem, *parts, classifier), stem, parts, classifier)


def batch(samples=4, size=8):
    return torch.randn(samples, 3, size, size), torch.randint(10, (samples,))


@pytest.mark.parametrize("method", [EndToEnd(), DGL(), MLAAN(), MLAAN(reach=3), MLAAN(preset="authors")], ids=repr)
@pytest.mark.parametrize("schedule", ["lean", "full"])
@pytest.mark.parametrize("recompute", ["none", "once", "each"])
def test_nothing_is_alive_longer_than_the_plan_says(monkeypatch, method, schedule, recompute):
    """As many modules' saved tensors as the plan's live window, and nothing at all after the step."""
    seen: list[step_state.StepState] = []
    most_saved, most_outputs = [0], [0]
    run = step_state.StepState.run

    def watched(self, step):
        run(self, step)
        seen.append(self)
        most_saved[0] = max(most_saved[0], len(self.saved))
        most_outputs[0] = max(most_outputs[0], len(self.outputs))

    monkeypatch.setattr(step_state.StepState, "run", watched)
    engine = Engine(CifarResNet(20), method, 9, input_shape=(3, 8, 8), schedule=schedule, recompute=recompute)
    engine.step(*batch())
    assert most_saved[0] <= engine.plan.window
    if schedule == "lean":
        assert most_outputs[0] <= 1
    end = seen[-1]
    assert not end.saved
    assert not end.inputs
    assert not end.outputs
    assert not end.arrived
    assert not end.random
    assert all(p.grad is None for part in (engine.backbone.net, engine.heads) for p in part.parameters())


def test_a_module_without_pending_rebuild_lets_go_of_its_input(monkeypatch):
    held = []
    run = step_state.StepState.run

    def watched(self, step):
        run(self, step)
        held.append(len(self.inputs))

    monkeypatch.setattr(step_state.StepState, "run", watched)
    Engine(small_net(), MLAAN(preset="light"), 4, input_shape=(3, 8, 8)).step(*batch())
    assert max(held) == 1  # what the next Forward reads


def test_a_head_of_several_modules_moves_once_with_the_gradient_of_all():
    torch.manual_seed(0)
    backbone = small_net()
    head = PoolLinear(4, 10)

    class Shared(MethodConfig, name="shared-head"):
        def supervise(self, site):
            last = LocalLoss(3, backbone.classifier, 1, kind="classifier")
            return Supervision((LocalLoss(0, head), LocalLoss(2, head, 2), last))

    sections = (PartitionConfig(4), MemoryConfig(), SGDConfig(0.5, 0.0, momentum=0.0, nesterov=False))
    try:
        engine = Engine.from_config(backbone, Shared(), *sections, (3, 8, 8))
    finally:
        del MethodConfig.choices["shared-head"]
    images, labels = batch()
    before = head.linear.weight.detach().clone()
    engine.gradients(images, labels)
    assert head.linear.weight.grad is not None
    expected = before - 0.5 * head.linear.weight.grad
    for part in (backbone.net, engine.heads):
        part.zero_grad(set_to_none=True)
    engine.step(images, labels)
    assert torch.allclose(head.linear.weight, expected, rtol=1e-5, atol=1e-7)
    assert [str(step.task) for step in engine.plan.steps].index("Head(2, 1)") < [
        str(step.task) for step in engine.plan.steps
    ].index("Update(2)")


def test_the_authors_momentum_is_only_borrowed():
    """Running statistics that move n times do it with another momentum, put back after the forward."""
    engine = Engine(CifarResNet(20), MLAAN(preset="authors"), 9, input_shape=(3, 8, 8))
    engine.step(*batch())
    norms = [m for m in engine.backbone.net.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {norm.momentum for norm in norms} == {0.1}
    assert {int(norm.num_batches_tracked) for norm in norms} == {1, 2, 3}


def test_a_twin_of_a_frozen_block_still_moves():
    torch.manual_seed(0)
    model = CifarResNet(20)
    model.layer2.requires_grad_(False)
    engine = Engine(model, MLAAN(ema=0.5), 4, input_shape=(3, 16, 16))
    [twin] = [twin for twin in engine.supervision.twins if twin.source is model.layer2[0]]
    for weight in twin.block.parameters():
        weight.add_(1.0)
    before = [weight.clone() for weight in model.layer2.parameters()]
    engine.step(*batch(size=16))
    for weight, source in zip(twin.block.parameters(), twin.source.parameters(), strict=True):
        assert torch.allclose(weight, source + 0.5)
    assert all(torch.equal(a, b) for a, b in zip(before, model.layer2.parameters(), strict=True))


@pytest.mark.parametrize("method", [EndToEnd(), MLAAN(preset="light"), MLAAN(), DGL()], ids=repr)
@pytest.mark.parametrize("part", ["layer1", "layer3", "fc"])
def test_frozen_weights_stay_and_the_rest_trains(method, part):
    torch.manual_seed(0)
    model = CifarResNet(20)
    getattr(model, part).requires_grad_(False)
    before = {name: p.clone() for name, p in model.named_parameters()}
    Engine(model, method, 3, input_shape=(3, 8, 8)).step(*batch())
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]) == name.startswith(part), name


def test_a_weight_of_two_modules_is_refused():
    """Its first module's Update would move it before the second's gradient is there."""
    shared = nn.Conv2d(4, 4, 3, padding=1)
    stem, classifier = nn.Conv2d(3, 4, 3), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Linear(4, 10))
    blocks = [nn.Sequential(shared), nn.Conv2d(4, 4, 1), nn.Sequential(shared)]
    backbone = Backbone(nn.Sequential(stem, *blocks, classifier), stem, blocks, classifier)
    with pytest.raises(UserError, match=r"weight backbone.1.0.weight is shared by modules 0 and 2"):
        Engine(backbone, EndToEnd(), 3, input_shape=(3, 8, 8))
    Engine(backbone, EndToEnd(), 1, input_shape=(3, 8, 8)).step(*batch())


def test_outputs_that_are_no_maps_are_refused():
    stem, classifier = nn.Flatten(1), nn.Linear(6, 10)
    blocks = [nn.Linear(192, 6), nn.Linear(6, 6)]
    backbone = Backbone(nn.Sequential(stem, *blocks, classifier), stem, blocks, classifier)
    Engine(backbone, EndToEnd(), 2, input_shape=(3, 8, 8)).step(*batch())
    with pytest.raises(UserError, match=r"module 0 has shape \(6,\), but local heads need \(C, H, W\)"):
        Engine(backbone, MLAAN(), 2, input_shape=(3, 8, 8))
