"""What holds for every rule: twins, skipped updates, clipping, numbers on the device, nothing that waits."""

import pytest
import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.utils._python_dispatch import TorchDispatchMode

from mlaan.optim import Optimizer
from mlaan.optim.twins import move_twins
from optim.small import CHOICES, CONFIGS, Small, assert_equal, choices, gap, make

names = pytest.mark.parametrize("name", CONFIGS)
YES, NO = torch.tensor(True), torch.tensor(False)


def twin_gap(net: Small, steps: int = 2) -> float:
    """How far the twins are from keep * twin + (1 - keep) * weight of before each step."""
    worst = 0.0
    for seed in range(steps):
        expected = [
            twin.keep * tensor + (1 - twin.keep) * net.optimizer.master_of(weight).detach()
            for twin in net.twins
            for tensor, weight in zip(twin.block.parameters(), twin.source.parameters(), strict=True)
        ]
        net.step(seed)
        worst = max(worst, gap([tensor for twin in net.twins for tensor in twin.block.parameters()], expected))
    return worst


@choices
def test_twins_move_with_the_weights_of_before(name, backend):
    assert twin_gap(make(name, backend)) < 1e-14


@pytest.mark.parametrize(("name", "backend"), [("sgd", "native"), ("adamw", "torch")])
def test_twins_moved_after_the_weights_are_noticed(monkeypatch, name, backend):
    update = Optimizer.update

    def late(self, group, finite=None):
        twins, self.groups[group].twins = self.groups[group].twins, []
        update(self, group, finite)
        move_twins([(weight.detach(), tensor, keep) for weight, tensor, keep in twins], finite)
        self.groups[group].twins = twins

    monkeypatch.setattr(Optimizer, "update", late)
    assert twin_gap(make(name, backend)) > 1e-4


@choices
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_skipped_update_leaves_everything_as_it_is(name, backend, dtype):
    net, other = make(name, backend, dtype), make(name, backend, dtype)
    for seed in range(3):
        net.step(seed, (YES, YES))
        other.step(seed, (YES, YES))
        before = net.tensors()
        net.step(100 + seed, (NO, NO), size=float("nan"))
        assert_equal(net.tensors(), before)
        assert all(weight.grad is None for weight in net.modules.parameters())
    assert_equal(net.tensors(), other.tensors())


@choices
def test_an_update_known_to_be_finite_is_one_without_a_verdict(name, backend):
    net, other = make(name, backend), make(name, backend)
    for seed in range(2):
        net.step(seed, (YES, YES))
        other.step(seed)
    assert gap(net.tensors(), other.tensors()) < 1e-14


def test_only_the_module_that_is_not_finite_is_skipped():
    net = make("adamw")
    net.step(0, (YES, YES))
    before = [[weight.detach().clone() for weight in module.parameters()] for module in net.modules]
    net.step(1, (NO, YES))
    assert gap(list(net.modules[0].parameters()), before[0]) == 0
    assert gap(list(net.modules[1].parameters()), before[1]) > 1e-4
    counts = [net.optimizer.state_dict()[f"adamw.step.{group}"].item() for group in (0, 1)]
    assert counts == [1, 2]


@choices
@pytest.mark.parametrize("clip", ["global", "module"])
@pytest.mark.parametrize("size", [0.01, 3.0])
def test_clipping_is_that_of_torch(name, backend, clip, size):
    net, other = make(name, backend, clip=clip, clip_norm=2.0), make(name, backend)
    for seed in range(3):
        other.give(seed, size)
        parts = [other.modules] if clip == "global" else other.modules
        norms = [clip_grad_norm_(part.parameters(), 2.0) for part in parts]
        assert all((norm > 2) == (size > 1) for norm in norms)
        for group in (1, 0):
            other.optimizer.update(group)
        net.step(seed, size=size)
    assert gap(net.tensors(), other.tensors()) < 1e-6


def test_clipping_by_the_common_norm_differs_from_clipping_by_module():
    nets = [make("sgd", clip=clip, clip_norm=2.0) for clip in ("global", "module", "off")]
    for net in nets:
        net.step(0, size=3.0)
    assert gap(nets[0].tensors(), nets[1].tensors()) > 1e-3
    assert gap(nets[0].tensors(), nets[2].tensors()) > 1e-3


def test_the_common_norm_leaves_out_what_is_not_finite():
    net, other = make("sgd", clip="global", clip_norm=2.0), make("sgd")
    before = [weight.detach().clone() for weight in net.modules[0].parameters()]
    net.give(0, 3.0)
    net.modules[0][0].weight.grad[0] = float("inf")
    net.optimizer.measure_norm([NO, YES])
    net.optimizer.update(0, NO)
    net.optimizer.update(1, YES)
    other.give(0, 3.0)
    clip_grad_norm_(other.modules[1].parameters(), 2.0)
    other.optimizer.update(1)
    assert gap(list(net.modules[1].parameters()), list(other.modules[1].parameters())) < 1e-6
    assert gap(list(net.modules[0].parameters()), before) == 0


def test_an_update_before_the_common_norm_is_refused():
    net = make("sgd", clip="global")
    net.step(0)
    net.give(1)
    with pytest.raises(AssertionError, match="measure_norm"):
        net.optimizer.update(0)


@choices
@pytest.mark.parametrize("clip", ["off", "global"])
def test_a_learning_rate_on_the_device_is_the_same_number(name, backend, clip):
    net, other = make(name, backend, clip=clip), make(name, backend, clip=clip)
    net.optimizer.on_device(True)
    for seed, rate in enumerate((0.5, 0.125, 0.0, 0.0625)):
        for one in (net, other):
            one.optimizer.learning_rate = rate
            one.step(seed)
    assert_equal(net.tensors(), other.tensors())
    assert net.optimizer.learning_rate == 0.0625


class Waiting(TorchDispatchMode):
    """Refuses what fetches a number from the device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func is not torch.ops.aten._local_scalar_dense.default, "a number was fetched from the device"
        return func(*args, **(kwargs or {}))


@choices
@pytest.mark.parametrize("clip", ["module", "global"])
def test_nothing_waits_for_the_device(name, backend, clip):
    net = make(name, backend, torch.bfloat16, clip=clip)
    net.optimizer.on_device(True)
    with Waiting():
        net.step(0)
        net.step(1, (YES, NO))
    with pytest.raises(AssertionError, match="fetched"), Waiting():
        bool(YES)


@choices
def test_a_prepared_optimizer_makes_nothing_more(name, backend):
    net, other = make(name, backend, clip="global"), make(name, backend, clip="global")
    net.optimizer.prepare()
    places = [tensor.data_ptr() for tensor in net.optimizer.tensors()]
    for seed in range(2):
        net.step(seed)
        other.step(seed)
    assert [tensor.data_ptr() for tensor in net.optimizer.tensors()] == places
    states = [one.optimizer.state_dict() for one in (net, other)]
    assert states[0].keys() == states[1].keys()
    assert_equal(*([state[key] for key in sorted(state)] for state in states))


@choices
def test_tensors_are_all_that_a_step_changes(name, backend):
    """With weights and twins put back too, a step leaves no trace."""
    net = make(name, backend, torch.bfloat16)
    net.optimizer.prepare()
    net.step(0)
    kept = [*net.modules.parameters(), *(t for twin in net.twins for t in twin.block.parameters())]
    kept += list(net.optimizer.tensors())
    saved = [tensor.detach().clone() for tensor in kept]
    net.step(1)
    after = net.tensors()
    with torch.no_grad():
        for tensor, value in zip(kept, saved, strict=True):
            tensor.copy_(value)
    net.step(1)
    assert_equal(net.tensors(), after)


@pytest.mark.gpu
@pytest.mark.parametrize(("name", "backend"), CHOICES)
def test_a_captured_step_replays_with_new_numbers(name, backend):
    net, other = (make(name, backend, torch.float32, "cuda", clip="global") for _ in range(2))
    static: list[Tensor] = []

    def run() -> None:
        for weight, grad in zip(net.modules.parameters(), static, strict=True):
            weight.grad = grad.clone() if weight.requires_grad else None
        net.optimizer.measure_norm()
        for group in (1, 0):
            net.optimizer.update(group)

    make(name, backend, torch.float32, "cuda", clip="global").step(0)  # libraries load, kernels come to the device
    static += [torch.zeros_like(weight) for weight in net.modules.parameters()]
    net.optimizer.on_device(True)
    net.optimizer.prepare()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    for seed, rate in enumerate((0.5, 0.125, 0.25)):
        other.give(seed)
        for tensor, weight in zip(static, other.modules.parameters(), strict=True):
            tensor.copy_(torch.zeros_like(tensor) if weight.grad is None else weight.grad)
        net.optimizer.learning_rate = other.optimizer.learning_rate = rate
        graph.replay()
        other.step(seed)
    assert gap(net.tensors(), other.tensors()) < 1e-6
