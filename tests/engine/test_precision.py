"""bfloat16 runs modules, heads and tests under autocast and nothing else; channels_last changes no result."""

import pytest
import torch
from torch.nn import functional as F

from exact.compare import gap
from mlaan import DGL, MLAAN, AugLocal, Engine, InfoPro, UserError
from mlaan.config import SGDConfig
from mlaan.models import CifarResNet

BATCH = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0)), torch.arange(8)
METHODS = [DGL(), MLAAN("light"), MLAAN("fast"), InfoPro(), AugLocal()]


def engine_of(method, **settings) -> Engine:
    torch.manual_seed(0)
    known = (0.5,) * 3, (0.25,) * 3
    return Engine(CifarResNet(20), method, 4, input_shape=(3, 16, 16), normalisation=known, **settings)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_bfloat16(method):
    low, full = engine_of(method, precision="bfloat16"), engine_of(method)
    seen = set()
    for module in (*low.backbone.net.modules(), *low.heads.modules()):
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(lambda module, given, output: seen.add((output.dtype, module.weight.dtype)))
    ours, theirs = low.gradients(*BATCH), full.gradients(*BATCH)
    assert seen == {(torch.bfloat16, torch.float32)}
    assert ours.losses.dtype == torch.float32
    assert torch.allclose(ours.losses, theirs.losses, rtol=0.05, atol=0.02)
    assert not torch.equal(ours.losses, theirs.losses)
    gradients = [[p.grad.flatten() for p in engine.backbone.net.parameters()] for engine in (low, full)]
    assert all(gradient.dtype == torch.float32 for gradient in gradients[0])
    assert F.cosine_similarity(*(torch.cat(parts) for parts in gradients), dim=0) > 0.8


def test_bfloat16_in_the_test():
    engine = engine_of(DGL(), precision="bfloat16")
    seen = set()
    engine.backbone.blocks[0].module.register_forward_hook(lambda *given: seen.add(given[-1].dtype))
    assert engine.evaluate([BATCH]).samples == 8
    assert seen == {torch.bfloat16}


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_channels_last(method):
    last, usual = engine_of(method, channels_last=True), engine_of(method)
    assert last.backbone.net.layer1[0].conv1.weight.is_contiguous(memory_format=torch.channels_last)
    ours, theirs = last.gradients(*BATCH), usual.gradients(*BATCH)
    assert gap(ours.losses, theirs.losses) < 1e-5
    last.step(*BATCH)
    weights = zip(last.backbone.net.named_parameters(), usual.backbone.net.parameters(), strict=True)
    usual.step(*BATCH)
    assert max(gap(a.detach(), b.detach()) for (_, a), b in weights) < 1e-3


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_float16_gradients_are_those_of_the_losses_whatever_the_scales(method):
    low, full = engine_of(method, precision="float16"), engine_of(method)
    low.loss_scale.scales.fill_(128.0)
    images, labels = BATCH[0][:4], BATCH[1][:4]
    low.gradients(images, labels)
    full.gradients(images, labels)
    gradients = [[p.grad.flatten() for p in engine.backbone.net.parameters()] for engine in (low, full)]
    assert all(gradient.dtype == torch.float32 for gradient in gradients[0])
    ours, theirs = (torch.cat(parts) for parts in gradients)
    assert F.cosine_similarity(ours, theirs, dim=0) > 0.95
    assert 0.8 < ours.norm() / theirs.norm() < 1.25


def test_tf32_is_switched_on_for_its_steps_alone():
    seen = []
    for precision in ("float32", "tf32"):
        engine = engine_of(DGL(), precision=precision)
        layer = engine.backbone.blocks[0].module
        layer.register_forward_hook(lambda *_: seen.append(torch.backends.cuda.matmul.allow_tf32))
        before = torch.backends.cuda.matmul.allow_tf32
        try:
            for switch in (False, True):
                torch.backends.cuda.matmul.allow_tf32 = switch
                engine.step(*BATCH)
                engine.evaluate([BATCH])
                assert torch.backends.cuda.matmul.allow_tf32 == switch
        finally:
            torch.backends.cuda.matmul.allow_tf32 = before
    assert seen == [False] * 4 + [True] * 4


def round_gradients(engine):
    """As a bfloat16 weight's gradients are held: fused kernels give float32 ones."""
    layers = [m for part in (engine.backbone.net, engine.heads) for m in part.modules()]
    rounded = {id(m.weight) for m in layers if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)}
    update = engine.optimizer.update

    def rounding(group, finite=None):
        for weight in engine.optimizer.groups[group].weights:
            if id(weight) in rounded and weight.grad is not None:
                weight.grad = weight.grad.bfloat16().float()
        update(group, finite)

    engine.optimizer.update = rounding


@pytest.mark.parametrize("preset", ["light", "paper"])
@pytest.mark.parametrize("recompute", ["none", "fused"])
def test_bfloat16_weights_train_as_their_float32_masters_do_under_autocast(preset, recompute):
    settings = {"precision": "bfloat16", "recompute": recompute}
    short, full = (engine_of(MLAAN(preset), weights=w, **settings) for w in ("bfloat16", "float32"))
    round_gradients(full)
    for _ in range(2):
        ours, theirs = short.step(*BATCH), full.step(*BATCH)
    assert torch.allclose(ours.losses, theirs.losses, rtol=1e-2)
    dtypes = {
        type(layer).__name__: layer.weight.dtype for layer in short.backbone.net.modules() if hasattr(layer, "weight")
    }
    assert dtypes == {"Conv2d": torch.bfloat16, "BatchNorm2d": torch.float32, "Linear": torch.bfloat16}
    state, wanted = short.state_dict(), full.state_dict()
    assert {value.dtype for value in state["backbone"].values()} == {torch.float32, torch.int64}
    weights = [name for name in wanted["backbone"] if name.endswith("weight")]
    assert max(gap(state["backbone"][name], wanted["backbone"][name]) for name in weights) < 1e-6
    again = engine_of(MLAAN(preset), weights="bfloat16", **settings)
    again.load_state_dict(state)
    assert torch.equal(again.step(*BATCH).losses, short.step(*BATCH).losses)


def test_float64_has_no_lower_precision():
    with pytest.raises(UserError, match=r"train.precision = 'bfloat16' needs float32 weights"):
        Engine(CifarResNet(20).double(), precision="bfloat16")


def test_a_common_norm_counts_gradients_of_every_dtype():
    """bfloat16 weights beside float32 ones: the update is that of all gradients scaled by their common norm."""
    engine = engine_of(DGL(), precision="bfloat16", weights="bfloat16", optim=SGDConfig(clip="global", clip_norm=0.5))
    engine.gradients(*BATCH)
    grads = [w.grad for group in engine.executor.weights for w in group if w.grad is not None]
    assert {grad.dtype for grad in grads} == {torch.bfloat16, torch.float32}
    norm = torch.stack([grad.double().norm() for grad in grads]).norm()
    engine.optimizer.measure_norm()
    assert engine.optimizer._coefficient.item() == pytest.approx(0.5 / (norm.item() + 1e-6), rel=1e-5)
