"""Masters of bfloat16 weights, and states that are saved and loaded."""

import io

import pytest
import torch
from torch import nn

from mlaan import UserError
from mlaan.config import LARSConfig, SGDConfig
from mlaan.optim import Optimizer, state_bytes
from optim.small import CONFIGS, assert_equal, choices, gap, make

dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])


@pytest.mark.parametrize("backend", ["native", "torch"])
def test_masters_keep_steps_that_bfloat16_would_lose(backend):
    config = SGDConfig(learning_rate=2.0**-14, momentum=0.0, nesterov=False, weight_decay=0.0, backend=backend)
    weight = nn.Parameter(torch.ones(8, 3, dtype=torch.bfloat16))
    single = nn.Parameter(torch.ones(8, 3))
    optimizers = [Optimizer([[w]], [], {w: "w"}, config) for w in (weight, single)]
    alone = weight.detach().clone()
    for _ in range(100):
        for w, optimizer in zip((weight, single), optimizers, strict=True):
            w.grad = torch.full_like(w, -1.0)
            optimizer.update(0)
        alone += 2.0**-14
    assert torch.equal(optimizers[0].master_of(weight), single)
    assert torch.equal(optimizers[0].master_of(weight), torch.full((8, 3), 1 + 100 * 2.0**-14))
    assert torch.equal(weight, single.bfloat16())
    assert (weight > 1).all()
    assert (alone == 1).all(), "bfloat16 alone keeps such steps, too: the test says nothing"


def test_masters_are_the_values_handed_over_and_twins_follow_them():
    value = torch.full((4, 2), 1 + 2.0**-12)
    weight = nn.Parameter(value.bfloat16())
    optimizer = Optimizer([[weight]], [], {weight: "w"}, CONFIGS["sgd"], {weight: value})
    assert torch.equal(optimizer.master_of(weight), value)
    assert optimizer.master_of(weight) is not value
    net = make("sgd", dtype=torch.bfloat16)
    assert all(net.optimizer.master_of(weight).dtype == torch.float32 for weight in net.modules.parameters())


@pytest.mark.parametrize("name", CONFIGS)
def test_bfloat16_weights_follow_float32_ones_given_the_same_gradients(name):
    rounded, single = make(name, dtype=torch.bfloat16), make(name, dtype=torch.float32)
    with torch.no_grad():
        for weight, other in zip(single.modules.parameters(), rounded.modules.parameters(), strict=True):
            weight.copy_(other)
    for twin, from_twin in zip(single.twins, rounded.twins, strict=True):
        twin.block.load_state_dict(from_twin.block.state_dict())
    for seed in range(3):
        rounded.give(seed)
        for weight, other in zip(single.modules.parameters(), rounded.modules.parameters(), strict=True):
            weight.grad = None if other.grad is None else other.grad.float()
        for group in (0, 1):
            single.optimizer.update(group)
            rounded.optimizer.update(group)
    weights = list(rounded.modules.parameters())
    assert_equal([rounded.optimizer.master_of(w) for w in weights], [w.detach() for w in single.modules.parameters()])
    assert_equal(weights, [rounded.optimizer.master_of(weight).bfloat16() for weight in weights])
    assert_equal(*([t for twin in net.twins for t in twin.block.parameters()] for net in (rounded, single)))


def test_modules_of_bfloat16_and_float32_weights_move_together():
    weights = [nn.Parameter(torch.ones(3, 2, dtype=torch.bfloat16)), nn.Parameter(torch.ones(3))]
    names = {weight: str(i) for i, weight in enumerate(weights)}
    optimizer = Optimizer([weights], [], names, make("adamw", clip="module").optimizer.config)
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    optimizer.update(0)
    moved = [optimizer.master_of(weight).detach().flatten()[0].item() for weight in weights]
    assert moved[0] == moved[1] != 1
    assert optimizer.state_dict()["adamw.step.0"] == 1


def test_loaded_masters_give_their_weights():
    net, other = make("sgd", dtype=torch.bfloat16), make("sgd", dtype=torch.bfloat16)
    net.step(0)
    other.optimizer.load_state_dict(net.optimizer.state_dict())
    assert_equal(list(other.modules.parameters()), list(net.modules.parameters()))


@choices
@dtypes
def test_saved_in_the_middle_it_goes_on_bit_for_bit(name, backend, dtype):
    net, other = make(name, backend, dtype), make(name, backend, dtype)
    for seed in range(2):
        net.step(seed)
    file = io.BytesIO()
    torch.save({"weights": net.modules.state_dict(), "optimizer": net.optimizer.state_dict()}, file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    other.step(9)
    other.optimizer.prepare()
    places = [tensor.data_ptr() for tensor in other.optimizer.tensors()]
    other.modules.load_state_dict(state["weights"])
    for twin, from_twin in zip(other.twins, net.twins, strict=True):
        twin.block.load_state_dict(from_twin.block.state_dict())
    other.optimizer.load_state_dict(state["optimizer"])
    assert [tensor.data_ptr() for tensor in other.optimizer.tensors()] == places
    for seed in range(2, 4):
        net.step(seed)
        other.step(seed)
    assert_equal(net.tensors()[: len(other.tensors())], other.tensors())


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_backends_read_each_others_states(name):
    net, other = make(name, "native"), make(name, "torch")
    for one in (net, other):
        one.step(0)
    other.optimizer.load_state_dict(net.optimizer.state_dict())
    for one in (net, other):
        one.step(1)
    assert gap(net.tensors(), other.tensors()) < 1e-14


def test_the_state_of_sgd_is_the_momenta_by_name():
    net = make("sgd")
    net.step(0)
    trained = {name for name, weight in net.modules.named_parameters() if weight.requires_grad}
    assert net.optimizer.state_dict().keys() == trained


def test_what_is_not_in_a_state_becomes_zero():
    net = make("sgd")
    net.step(0)
    net.optimizer.load_state_dict({})
    assert all((tensor == 0).all() for tensor in net.optimizer.tensors())


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        (
            "sgd",
            lambda s: s | {"1.0.wieght": s["1.0.weight"]},
            r"1\.0\.wieght of the optimizer's state belongs to noth",
        ),
        (
            "sgd",
            lambda s: s | {"1.0.weight": torch.zeros(3)},
            r"1\.0\.weight of .* shape \(3,\), and numbers of shape \(5, 6\)",
        ),
        ("sgd", lambda s: s | {"1.0.weight": 7}, r"1\.0\.weight of the optimizer's state is 7, and numbers of shape"),
        ("sgd", lambda s: {f"master.{k}": v for k, v in s.items()}, r"master\..* belongs to nothing here"),
        ("adamw", lambda s: make("sgd").optimizer.state_dict() | {"1.0.weight": s["adamw.step.0"]}, "belongs to noth"),
        ("adamw", lambda s: {k: v for k, v in s.items() if "step" not in k}, r"adamw\.step\.0 is missing"),
        ("adamw", lambda s: {k: v for k, v in s.items() if "second" not in k}, r"adamw\.second_moment\..* is missing"),
        ("lamb", lambda s: {k.replace("lamb", "adamw"): v for k, v in s.items()}, r"adamw\..*another optim\.name"),
    ],
)
def test_a_state_that_does_not_fit_is_refused_and_nothing_changes(name, change, words):
    net = make(name)
    net.step(0)
    before = net.tensors()
    with pytest.raises(UserError, match=words):
        net.optimizer.load_state_dict(change(net.optimizer.state_dict()))
    assert_equal(net.tensors(), before)


def test_a_state_without_masters_is_refused_for_bfloat16_weights():
    with pytest.raises(UserError, match=r"master\.0\.0\.weight is missing .* train\.weights"):
        make("sgd", dtype=torch.bfloat16).optimizer.load_state_dict(make("sgd").optimizer.state_dict())


@pytest.mark.parametrize("name", CONFIGS)
@dtypes
def test_bytes_for_each_weight_are_those_that_are_held(name, dtype):
    net = make(name, dtype=dtype)
    for weight in net.modules.parameters():
        weight.requires_grad_(True)
    net.optimizer.prepare()
    held = sum(tensor.nbytes for tensor in net.optimizer.tensors() if tensor.ndim)
    assert held == state_bytes(CONFIGS[name], dtype) * sum(weight.numel() for weight in net.modules.parameters())


def test_lars_without_momentum_holds_nothing():
    assert state_bytes(LARSConfig(momentum=0.0), torch.float32) == 0
