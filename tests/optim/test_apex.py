"""The way to NVIDIA's apex: with a stand-in for it here, with apex itself where it is installed on a GPU."""

import sys
from types import ModuleType

import pytest
import torch

from mlaan import UserError
from mlaan.optim import by_apex
from optim.small import CONFIGS, assert_equal, gap, make

YES, NO = torch.tensor(True), torch.tensor(False)
RULES = ["sgd", "sgd-plain", "lamb"]


class FusedSGD(torch.optim.SGD):
    """torch's, which keeps its state under the same names; like apex's it moves float32 alone."""

    def step(self):
        assert all(weight.dtype == torch.float32 for weight in self.param_groups[0]["params"])
        super().step()


class FusedLAMB(torch.optim.Optimizer):
    """What apex's class computes, its own clipping and its overwriting of gradients included."""

    def __init__(self, params, lr, betas, eps, weight_decay, max_grad_norm=1.0, use_nvlamb=False):
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self.max_grad_norm, self.use_nvlamb = max_grad_norm, use_nvlamb

    def step(self):
        (group,) = self.param_groups
        group["step"] = group.get("step", 0) + 1
        norm = torch.stack([weight.grad.norm() for weight in group["params"]]).norm()
        for weight in group["params"]:
            grad = weight.grad / (norm / self.max_grad_norm).clamp(min=1)
            state = self.state[weight]
            for name, beta, value in zip(("exp_avg", "exp_avg_sq"), group["betas"], (grad, grad**2), strict=True):
                state[name].mul_(beta).add_((1 - beta) * value)
            first, second = (
                state[name] / (1 - beta ** group["step"])
                for name, beta in zip(("exp_avg", "exp_avg_sq"), group["betas"], strict=True)
            )
            step = first / (second.sqrt() + group["eps"]) + group["weight_decay"] * weight
            adapted = self.use_nvlamb or group["weight_decay"] != 0
            ratio = weight.norm() / step.norm() if adapted and weight.norm() > 0 and step.norm() > 0 else 1.0
            weight.sub_(group["lr"] * ratio * step)
            weight.grad.fill_(float("nan"))


@pytest.fixture
def stand_in(monkeypatch):
    """apex and amp_C as modules of this file's classes, and weights on the CPU let through."""
    apex, optimizers = ModuleType("apex"), ModuleType("apex.optimizers")
    optimizers.FusedSGD, optimizers.FusedLAMB = FusedSGD, FusedLAMB  # type: ignore[attr-defined]
    apex.optimizers = optimizers  # type: ignore[attr-defined]
    for name, module in (("apex", apex), ("apex.optimizers", optimizers), ("amp_C", ModuleType("amp_C"))):
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(by_apex, "check_weights", lambda weights: None)


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("settings", [{}, {"clip": "global", "clip_norm": 2.0}, {"weight_decay": 0.0}], ids=str)
def test_steps_by_way_of_apex_are_those_of_the_native_rule(stand_in, name, dtype, settings):
    net, other = make(name, "apex", dtype, **settings), make(name, dtype=dtype, **settings)
    for seed in range(4):
        for one in (net, other):
            one.optimizer.learning_rate = 0.1 / (1 + seed)
            one.step(seed)
    exact = [[tensor for tensor in one.tensors() if tensor.dtype == torch.float32] for one in (net, other)]
    assert gap(*exact) < 2e-6
    for weight in net.modules.parameters():
        assert torch.equal(weight, net.optimizer.master_of(weight).to(dtype))


@pytest.mark.parametrize("name", ["sgd", "sgd-plain"])
def test_a_skipped_step_of_apex_leaves_everything_as_it_is(stand_in, name):
    net, other = make(name, "apex", torch.bfloat16), make(name, "apex", torch.bfloat16)
    for seed in range(2):
        net.step(seed, (YES, YES))
        net.step(100 + seed, (NO, NO), size=float("nan"))
        other.step(seed, (YES, YES))
    assert_equal(net.tensors(), other.tensors())


def test_apex_cannot_skip_a_step_of_lamb(stand_in):
    net = make("lamb", "apex", torch.float32)
    before = net.tensors()
    with pytest.raises(UserError, match=r"counts the steps of 'lamb' on the CPU .* train\.precision = 'float16'"):
        net.step(0, (YES, YES))
    assert_equal(net.tensors(), before)


def test_lamb_goes_on_from_a_saved_state(stand_in):
    net, other = (make("lamb", "apex", torch.float32) for _ in range(2))
    for seed in (0, 1):
        net.step(seed)
        other.step(seed)
    other.step(7)
    other.modules.load_state_dict(net.modules.state_dict())
    for twin, from_twin in zip(other.twins, net.twins, strict=True):
        twin.block.load_state_dict(from_twin.block.state_dict())
    other.optimizer.load_state_dict(net.optimizer.state_dict())
    net.step(2)
    other.step(2)
    assert_equal(net.tensors(), other.tensors())


def test_apex_cannot_be_captured(stand_in):
    with pytest.raises(UserError, match=r"optim\.backend = 'apex' cannot run inside a CUDA graph"):
        make("sgd", "apex", torch.float32).optimizer.on_device(True)


@pytest.mark.parametrize("name", ["adamw", "lars"])
def test_apex_is_there_for_sgd_and_lamb_alone(name):
    with pytest.raises(UserError, match=rf"optim\.backend = 'apex' has no '{name}': set optim\.backend = 'native'"):
        make(name, "apex")


def test_apex_refuses_weights_on_the_cpu():
    with pytest.raises(UserError, match=r"runs on NVIDIA GPUs, and the weights are on cpu: set train\.device"):
        make("sgd", "apex", torch.float32)


def test_apex_that_is_not_installed_is_named_with_its_source(monkeypatch):
    monkeypatch.setattr(by_apex, "check_weights", lambda weights: None)
    monkeypatch.setitem(sys.modules, "apex", None)
    with pytest.raises(UserError, match=r"github\.com/NVIDIA/apex.*PyPI's package apex is another.*'native'"):
        make("sgd", "apex", torch.float32)


def test_apex_without_its_cuda_extensions_is_named_too(stand_in, monkeypatch):
    monkeypatch.setitem(sys.modules, "amp_C", None)
    with pytest.raises(UserError, match=r"with its CUDA extensions \(.*amp_C.*APEX_CUDA_EXT=1"):
        make("sgd", "apex", torch.float32)


@pytest.mark.gpu
@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
def test_apex_itself_moves_weights_as_the_native_rule(name, dtype):
    pytest.importorskip("amp_C", reason=f"apex is not installed: {by_apex.INSTALL}")
    net, other = make(name, "apex", dtype, "cuda"), make(name, "native", dtype, "cuda")
    assert CONFIGS[name].clip == "off"
    for seed in range(4):
        net.step(seed)
        other.step(seed)
    masters = [[one.optimizer.master_of(weight) for weight in one.modules.parameters()] for one in (net, other)]
    assert gap(*masters) < 1e-5
