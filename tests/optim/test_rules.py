"""Each rule of each backend moves weights as torch.optim or the paper says."""

import pytest
import torch

from mlaan import UserError
from optim.small import CONFIGS, IN_TORCH, defined, gap, make

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6}
dtypes = pytest.mark.parametrize("dtype", TOLERANCE, ids=["f64", "f32"])


@dtypes
@pytest.mark.parametrize("backend", ["native", "torch"])
@pytest.mark.parametrize("name", IN_TORCH)
def test_sgd_and_adamw_are_those_of_torch_optim(name, backend, dtype):
    net, config = make(name, backend, dtype), CONFIGS[name]
    trained = [weight for weight in net.modules.parameters() if weight.requires_grad]
    judged = [weight.detach().clone().requires_grad_() for weight in trained]
    common = {"lr": config.learning_rate, "weight_decay": config.weight_decay, "foreach": False}
    if name == "adamw":
        judge = torch.optim.AdamW(judged, betas=config.betas, eps=config.epsilon, **common)
    else:
        judge = torch.optim.SGD(judged, momentum=config.momentum, nesterov=config.nesterov, **common)
    for seed in range(5):
        net.give(seed)
        for weight, other in zip(trained, judged, strict=True):
            other.grad = weight.grad.clone()
        judge.step()
        net.step(seed)
    assert gap(trained, judged) < TOLERANCE[dtype]
    assert all(weight.grad is None for weight in trained)


@dtypes
@pytest.mark.parametrize("name", ["lars", "lamb"])
def test_lars_and_lamb_are_those_of_the_papers(name, dtype):
    net = make(name, dtype=dtype)
    trained = [weight for weight in net.modules.parameters() if weight.requires_grad]
    before = [weight.detach().clone() for weight in trained]
    seen = []
    for seed in range(5):
        net.give(seed)
        seen.append([weight.grad.double() for weight in trained])
        net.step(seed)
    expected = defined(CONFIGS[name], before, iter(seen))
    assert gap(trained, expected) < TOLERANCE[dtype]
    assert gap(trained, before) > 1e-3


@pytest.mark.parametrize("name", ["lars", "lamb"])
def test_torch_has_no_lars_and_lamb(name):
    with pytest.raises(UserError, match=r"optim\.backend = 'torch' has no '.*': set optim\.backend = 'native'"):
        make(name, "torch")


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_weight_without_gradient_stays(name):
    net = make(name)
    net.step(0)
    before = [weight.detach().clone() for weight in net.modules[0].parameters()]
    net.give(1)
    for weight in net.modules[0].parameters():
        weight.grad = None
    net.optimizer.update(0)
    assert gap(list(net.modules[0].parameters()), before) == 0
