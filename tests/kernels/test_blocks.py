"""Fused blocks are their plain twins: forward, every gradient, running statistics, evaluation mode."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from kernels.block_cases import BLOCKS, ODD, SIZES, Plain, cast, cotangents, given, plain_block
from kernels.forms import assert_near, relative_gap
from mlaan_kernels.blocks import FusedBlock, Settings, backward, fuse, make_chain
from mlaan_kernels.choice import interpreting

# Three layers deep, and a BatchNorm magnifies rounding where its values lie close together.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}

forms = pytest.mark.parametrize(
    ("device", "implementation", "dtype"),
    [
        pytest.param("cpu", "reference", torch.float64, id="reference-float64"),
        pytest.param("cpu", "reference", torch.float32, id="reference-float32"),
        pytest.param(
            "cpu",
            "triton",
            torch.float32,
            id="triton-float32",
            marks=pytest.mark.skipif(not interpreting(), reason="Triton's interpreter is off where there is a GPU"),
        ),
        pytest.param("cuda", "triton", torch.float32, id="cuda-float32", marks=pytest.mark.gpu),
    ],
)
names = pytest.mark.parametrize("name", BLOCKS)


@pytest.fixture(autouse=True)
def full_precision():
    """PyTorch's own convolutions in float32 proper, on a GPU too."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


@forms
@names
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("keep_activations", [False, True], ids=["fused", "none"])
def test_training(name, size, keep_activations, device, implementation, dtype):
    if (
        implementation == "triton"
        and (size != "7x7" or keep_activations)
        and name not in ("bottleneck-stride", "basic")
    ):
        pytest.skip("interpreted kernels: all sizes and policies for two blocks, the rest at 7x7")
    images = 64 if size == "1x1" else 3  # few values for a BatchNorm make a large condition number
    plain, x = plain_block(name), given(plain_block(name), images, SIZES[size])
    twin = Plain(plain, x)
    fused = fuse(copy.deepcopy(plain).to(device, dtype), Settings(None, implementation, keep_activations))
    assert isinstance(fused, FusedBlock)
    assert list(fused.state_dict()) == list(plain.state_dict())
    [cotangent] = cotangents(twin.y, ["dense"])
    x = x.to(device, dtype).requires_grad_()
    y = fused(x)
    weights = dict(fused.named_parameters())
    dy = cast(cotangent, dtype, device).dense
    dx, *grads = torch.autograd.grad(y, [x, *weights.values()], dy)
    # what plain PyTorch itself loses in this precision: some of these problems are ill-conditioned
    single = Plain(copy.deepcopy(plain).to(dtype), given(plain, images, SIZES[size]).to(dtype))
    tolerance = TOLERANCE[dtype]
    assert_near(y, twin.y, tolerance, "y")
    assert_near(dx, twin.input_grad(cotangent), tolerance, "dx")
    wanted, plainly = twin.weight_grads(cotangent), single.weight_grads(cast(cotangent, dtype, "cpu"))
    for key, grad in zip(weights, grads, strict=True):
        assert_near(grad, wanted[key], max(tolerance, 5 * relative_gap(plainly[key], wanted[key])), key)
    for key, buffer in twin.block.named_buffers():
        assert_near(fused.get_buffer(key), buffer, tolerance, key)


@forms
@names
def test_evaluation_mode(name, device, implementation, dtype):
    """Running statistics are used, stay, and are constants to the gradient."""
    plain = plain_block(name).eval()
    x = given(plain, 1, (7, 5))
    twin = Plain(plain, x)
    fused = fuse(copy.deepcopy(plain).to(device, dtype), Settings(None, implementation))
    before = copy.deepcopy(fused.state_dict())
    [cotangent] = cotangents(twin.y, ["dense"])
    x = x.to(device, dtype).requires_grad_()
    y = fused(x)
    weights = dict(fused.named_parameters())
    dx, *grads = torch.autograd.grad(y, [x, *weights.values()], cast(cotangent, dtype, device).dense)
    assert_near(y, twin.y, TOLERANCE[dtype], "y")
    assert_near(dx, twin.input_grad(cotangent), TOLERANCE[dtype], "dx")
    wanted = twin.weight_grads(cotangent)
    for key, grad in zip(weights, grads, strict=True):
        assert_near(grad, wanted[key], TOLERANCE[dtype], key)
    assert all(torch.equal(value, before[key]) for key, value in fused.state_dict().items())
    with torch.no_grad():
        assert_near(fused(x), twin.y, TOLERANCE[dtype], "y without gradients")


@forms
@pytest.mark.parametrize("name", ["bottleneck", "bottleneck-stride", "basic-stride", "stem-pool"])
@pytest.mark.parametrize("kinds", ["pooled", "both", "dense+pooled", "pooled+both", "dense+dense"])
def test_cotangents_of_every_kind(name, kinds, device, implementation, dtype):
    """One or two at once: each at the input, and the weights' gradients for the first."""
    if implementation == "triton" and name == "stem-pool" and kinds != "dense+pooled":
        pytest.skip("interpreted kernels: a max pool makes all cotangents dense first")
    plain = plain_block(name)
    x = given(plain, 2, (7, 5))
    twin = Plain(plain, x)
    wanted = cotangents(twin.y, kinds.split("+"))
    block = copy.deepcopy(plain).to(device, dtype)
    chain = make_chain(block, Settings(None, implementation))
    assert chain is not None
    y, saved, pooled = chain.forward(x.to(device, dtype), keep=True, pool=True)
    assert saved is not None
    assert pooled is not None
    assert_near(pooled, twin.y.mean((2, 3)), TOLERANCE[dtype], "pooled")
    given_cotangents = [cast(one, dtype, device) for one in wanted]
    for _ in range(2):  # what was saved serves again
        inputs, grads = backward(chain, saved, given_cotangents, [True] * len(wanted), True)
        for one, theirs in zip(inputs, wanted, strict=True):
            assert one is not None
            assert one.dense is not None
            assert_near(one.dense, twin.input_grad(theirs), TOLERANCE[dtype], "dx")
        by_name = twin.weight_grads(wanted[0])
        for key, weight in block.named_parameters():
            assert_near(grads[weight], by_name[key], TOLERANCE[dtype], key)
    if len(wanted) == 2:
        [first, second], grads = backward(chain, saved, given_cotangents, [False, True], False)
        assert first is None
        assert not grads
        assert second is not None
        assert second.dense is not None
        assert_near(second.dense, twin.input_grad(wanted[1]), TOLERANCE[dtype], "dx of the second alone")
    assert torch.equal(y, chain.forward(x.to(device, dtype), keep=False)[0])


@forms
@pytest.mark.parametrize("name", ["bottleneck-stride", "basic"])
def test_slices_are_batches_of_their_own(name, device, implementation, dtype):
    plain = plain_block(name, statistics=False)
    parts = [given(plain, 2, (5, 7), seed) for seed in (1, 2, 3)]
    twins = [Plain(plain, part) for part in parts]
    wanted = [cotangents(twin.y, ["both"])[0] for twin in twins]
    block = copy.deepcopy(plain).to(device, dtype)
    chain = make_chain(block, Settings(None, implementation))
    assert chain is not None
    y, saved, _ = chain.forward(torch.cat(parts).to(device, dtype), keep=True, slices=3)
    assert saved is not None
    assert_near(y, torch.cat([twin.y for twin in twins]), TOLERANCE[dtype], "y")
    joined = cotangents(torch.cat([twin.y for twin in twins]), ["both"])[0]
    assert joined.dense is not None
    assert joined.pooled is not None
    for i, one in enumerate(wanted):
        object.__setattr__(one, "dense", joined.dense.chunk(3)[i])
        object.__setattr__(one, "pooled", joined.pooled.chunk(3)[i])
    [found], grads = backward(chain, saved, [cast(joined, dtype, device)], [True], True)
    assert found is not None
    assert found.dense is not None
    dx = torch.cat([twin.input_grad(one) for twin, one in zip(twins, wanted, strict=True)])
    assert_near(found.dense, dx, TOLERANCE[dtype], "dx")
    apart = [twin.weight_grads(one) for twin, one in zip(twins, wanted, strict=True)]
    for key, weight in block.named_parameters():
        assert_near(grads[weight], sum(some[key] for some in apart), TOLERANCE[dtype], key)


@forms
@pytest.mark.parametrize("name", ["bottleneck", "bottleneck-stride", "basic", "basic-stride"])
@pytest.mark.parametrize(("inputs", "members"), [(1, 2), (3, 1), (2, 2)])
def test_blocks_side_by_side(name, inputs, members, device, implementation, dtype):
    """Several blocks as one of more channels: members share an input and are added; the first of them is trained."""
    if implementation == "triton" and (inputs, members) != (2, 2):
        pytest.skip("interpreted kernels: two inputs with two members each")
    plains = [[plain_block(name, statistics=False) for _ in range(members)] for _ in range(inputs)]
    for i, some in enumerate(plains):
        for m, block in enumerate(some):
            for k, weight in enumerate(block.parameters()):
                torch.manual_seed(100 * i + 10 * m + k)
                weight.data += 0.3 * torch.randn_like(weight)
    xs = [given(plains[0][0], 2, (5, 6), seed) for seed in range(inputs)]
    twins = [[Plain(block, x) for block in some] for some, x in zip(plains, xs, strict=True)]
    y_wanted = torch.cat([sum((twin.y for twin in some), torch.zeros(())) for some in twins], 1)
    cotangent = cotangents(y_wanted, ["both"])[0]
    assert cotangent.dense is not None
    assert cotangent.pooled is not None
    blocks = [copy.deepcopy(block).to(device, dtype) for some in plains for block in some]
    for i, block in enumerate(blocks):
        block.requires_grad_(i % members == 0)
    chain = make_chain(blocks, Settings(None, implementation), inputs=inputs, members=members)
    assert chain is not None
    x = torch.cat(xs, 1).to(device, dtype).contiguous(memory_format=torch.channels_last)
    y, saved, pooled = chain.forward(x, keep=True, pool=True)
    assert saved is not None
    assert pooled is not None
    assert_near(y, y_wanted, TOLERANCE[dtype], "y")
    assert_near(pooled, y_wanted.mean((2, 3)), TOLERANCE[dtype], "pooled")
    only = chain.forward(x, keep=True, pool=True, write=False)
    assert not only[0].numel()
    assert only[2] is not None
    assert torch.equal(only[2], pooled)
    [found], grads = backward(chain, saved, [cast(cotangent, dtype, device)], [True], True)
    assert found is not None
    assert found.dense is not None
    for i, some in enumerate(twins):
        one = type(cotangent)(cotangent.dense.chunk(inputs, 1)[i], cotangent.pooled.chunk(inputs, 1)[i])
        dx = sum((twin.input_grad(one) for twin in some), torch.zeros(()))
        assert_near(found.dense.chunk(inputs, 1)[i], dx, TOLERANCE[dtype], f"dx of input {i}")
        for key, grad in some[0].weight_grads(one).items():
            assert_near(grads[blocks[i * members].get_parameter(key)], grad, TOLERANCE[dtype], f"{key} of input {i}")
    trained = {weight for block in blocks for weight in block.parameters() if weight.requires_grad}
    assert set(grads) == trained


@names
def test_checkpointing_and_frozen_weights(name):
    """Under torch.utils.checkpoint the same gradients; a frozen weight gets none, and its neighbours theirs."""
    plain = plain_block(name)
    x = given(plain, 2, (7, 7)).requires_grad_()
    fused = fuse(copy.deepcopy(plain), Settings(None, "reference"))
    frozen = next(iter(fused.parameters())).requires_grad_(False)
    weights = [weight for weight in fused.parameters() if weight is not frozen]
    usual = torch.autograd.grad(fused(x).square().sum(), [x, *weights])
    again = torch.autograd.grad(checkpoint(fused, x, use_reentrant=False).square().sum(), [x, *weights])
    assert all(torch.equal(a, b) for a, b in zip(usual, again, strict=True))
    wanted = torch.autograd.grad(plain(x).square().sum(), [x, *list(plain.parameters())[1:]])
    for a, b in zip(usual, wanted, strict=True):
        assert_near(a, b, TOLERANCE[torch.float64])


def test_under_autocast_it_computes_in_the_lower_precision():
    plain = plain_block("bottleneck-stride").float()
    fused = fuse(copy.deepcopy(plain), Settings(None, "reference"))
    x = given(plain, 4, (9, 9)).float()
    with torch.autocast("cpu", torch.bfloat16):
        y, theirs = fused(x), plain(x)
    assert y.dtype == theirs.dtype == torch.bfloat16
    assert_near(y, theirs, 2**-6)
    y.float().sum().backward()
    assert {weight.grad.dtype for weight in fused.parameters() if weight.grad is not None} == {torch.float32}


def test_what_cannot_be_fused_is_left_alone():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.ReLU())
    with pytest.warns(RuntimeWarning, match="nothing in Sequential has a fused form"):
        assert fuse(net) is net
    assert not any(isinstance(part, FusedBlock) for part in net.modules())
    with pytest.raises(ValueError, match="Linear has no fused form"):
        FusedBlock(nn.Linear(2, 2))
    hooked = plain_block("basic")
    hooked.conv1.register_forward_hook(lambda *arguments: None)
    assert make_chain(hooked, Settings()) is None
    moving = [plain_block("basic"), plain_block("basic")]
    assert make_chain(moving, Settings(), inputs=2) is None
    unlike = [plain_block("basic", statistics=False), plain_block("bottleneck", statistics=False)]
    assert make_chain(unlike, Settings(), inputs=2) is None


def gradients_agree(plain: nn.Module, fused: nn.Module, x: torch.Tensor) -> None:
    """Of the input and all trained weights, and the buffers after it; in float64."""
    found = {}
    for name, block in (("plain", plain), ("fused", fused)):
        own = x.clone().requires_grad_()
        y = block(own)
        block.zero_grad(set_to_none=True)
        torch.sin(y).sum().backward()
        found[name] = (y, own.grad, {key: weight.grad for key, weight in block.named_parameters()})
    assert_near(found["fused"][0], found["plain"][0], 1e-10, "y")
    assert_near(found["fused"][1], found["plain"][1], 1e-10, "dx")
    for key, grad in found["plain"][2].items():
        other = found["fused"][2][key]
        assert (grad is None) == (other is None), key
        if grad is not None and "0.bias" not in key:  # a BatchNorm takes out what a bias adds: its gradient is 0
            assert_near(other, grad, 1e-10, key)
        elif grad is not None:
            assert float((grad - other).abs().max()) < 1e-10
    for key, buffer in plain.named_buffers():
        assert_near(fused.get_buffer(key), buffer, 1e-10, key)


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("training", [True, False])
def test_biases_dilation_and_odd_pools(name, training):
    plain = plain_block(name).train(training)
    gradients_agree(plain, fuse(copy.deepcopy(plain), Settings(None, "reference")), given(plain, 3, (11, 8)))


@pytest.mark.parametrize("frozen", ["bn1", "bn2", "bn3", "downsample"])
def test_a_batchnorm_in_evaluation_mode_stays_so(frozen):
    """Its running statistics are constants; the others use the batch's."""
    plain = plain_block("bottleneck-stride")
    plain.get_submodule(frozen).eval()
    fused = fuse(copy.deepcopy(plain), Settings(None, "reference"))
    assert not fused.get_submodule(frozen).training
    assert fused.training
    gradients_agree(plain, fused, given(plain, 3, (7, 5)))


def test_a_frozen_weight_beside_a_trained_bias():
    plain = plain_block("bias")
    plain[0].weight.requires_grad_(False)
    gradients_agree(plain, fuse(copy.deepcopy(plain), Settings(None, "reference")), given(plain, 3, (7, 5)))


@pytest.mark.parametrize("shared", ["conv", "bn"])
def test_layers_that_share_weights_get_the_sum(shared):
    plain = plain_block("basic")
    setattr(plain, f"{shared}2", getattr(plain, f"{shared}1"))
    gradients_agree(plain, fuse(copy.deepcopy(plain), Settings(None, "reference")), given(plain, 3, (7, 5)))


def test_weights_that_change_before_the_backward_are_found_out():
    fused = fuse(plain_block("basic"), Settings(None, "reference"))
    y = fused(given(fused, 2, (5, 5)))
    with torch.no_grad():
        fused.conv2.weight.mul_(3)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_second_derivatives_are_refused():
    fused = fuse(plain_block("basic"), Settings(None, "reference"))
    x = given(fused, 2, (5, 5)).requires_grad_()
    [dx] = torch.autograd.grad(fused(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dx.sum().backward()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda block: setattr(block, "relu", nn.LeakyReLU()),
        lambda block: setattr(block.conv2, "padding_mode", "reflect"),
        lambda block: setattr(block, "bn1", nn.BatchNorm2d(7, affine=False)),
        lambda block: setattr(block, "bn2", nn.BatchNorm2d(7, momentum=None)),
        lambda block: setattr(block, "conv1", type("Own", (nn.Conv2d,), {})(7, 7, 3, padding=1)),
        lambda block: block.conv1.register_full_backward_pre_hook(lambda *arguments: None),
        lambda block: block.bn1.register_full_backward_hook(lambda *arguments: None),
        lambda block: block.relu.register_forward_pre_hook(lambda *arguments: None),
    ],
    ids=["leaky", "reflect", "no-affine", "no-momentum", "own-convolution", "pre-hook", "hook", "forward-hook"],
)
def test_blocks_that_do_something_else_are_not_fused(spoil):
    block = plain_block("basic")
    spoil(block)
    assert make_chain(block, Settings()) is None


def test_what_goes_on_does_not_hold_the_memory_of_both():
    block = plain_block("basic")
    chain = make_chain(block, Settings(None, "reference"))
    assert chain is not None
    y, saved, _ = chain.forward(given(block, 2, (5, 5)), keep=True)
    assert saved is not None
    [_, onward], _ = backward(chain, saved, cotangents(y, ["dense", "dense"]), [False, True], True)
    assert onward is not None
    assert onward.dense is not None
    assert onward.dense.untyped_storage().nbytes() == onward.dense.nbytes
