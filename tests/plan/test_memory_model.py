"""Predicted memory is what the allocator hands out, which is measured by code that shares nothing with the model."""

import pytest
import torch
from benchmarks.measure import peak_memory

from mlaan import DGL, MLAAN, EndToEnd, Engine
from mlaan.models import build
from mlaan.plan.costs import BATCHES
from mlaan.plan.predict import combine, levels, measure_parts, predict
from mlaan_kernels import library

LIGHT, PAPER = MLAAN(preset="light"), MLAAN()
ONCE = {"schedule": "full", "recompute": "once"}
EACH = {"schedule": "full", "recompute": "each"}
WINDOW = {"schedule": "windowed", "window": 3}
FULL, FUSED = {"schedule": "full"}, {"recompute": "fused"}
SHORT = [
    ("resnet18", 16, EndToEnd(), 1, {}),
    ("resnet18", 16, EndToEnd(), 4, ONCE),
    ("resnet18", 16, DGL(), 8, WINDOW),
    ("resnet18", 16, LIGHT, 4, WINDOW),
    ("resnet18", 16, LIGHT, 8, EACH),
    ("resnet18", 16, LIGHT, 4, FUSED),
    ("resnet18", 16, PAPER, 4, FULL),
    ("resnet50", 16, LIGHT, 8, {}),
    ("resnet50", 16, EndToEnd(), 8, ONCE),
]
MEMORY = [{}, WINDOW, FULL, ONCE, EACH, FUSED]
LONG = [
    (name, 32, method, modules, memory)
    for name in ("resnet18", "resnet50")
    for method in (DGL(), LIGHT, PAPER)
    for modules, memory in zip((2, 4, 4, 8, 8, 4), MEMORY, strict=True)
]


pytestmark = pytest.mark.skipif(
    library.status()[0].state != "loaded",
    reason="without native operators an update takes temporaries that the model leaves out",
)


def made(name, samples, method, modules, memory):
    """An engine after its first step, a batch for it, and what its plan costs."""
    torch.manual_seed(0)
    engine = Engine(build(name, 10), method, modules, input_shape=(3, 64, 64), **memory)
    parts = measure_parts(engine.backbone, (3, 64, 64), samples, torch.float32, engine.settings, device="cpu")
    images = (samples, 3, 64, 64)
    costs = combine(
        *(parts, engine.partition, engine.supervision, images, torch.float32),
        fused=engine.settings is not None,
        device="cpu",
    )
    batch = torch.randn(images), torch.randint(10, (samples,))
    engine.step(*batch)
    return engine, batch, costs


def name_of(case):
    network, samples, method, modules, memory = case
    words = [network, samples, method.name, getattr(method, "preset", ""), modules, *memory.values()]
    return "-".join(map(str, words))


def check(*case):
    engine, batch, costs = made(*case)
    prediction = predict(engine.plan, costs)
    step = peak_memory(lambda: engine.step(*batch), torch.device("cpu"))
    tensors = [*engine.backbone.net.parameters(), *engine.backbone.net.buffers(), batch[0]]
    tensors += [*engine.heads.parameters(), *engine.heads.buffers(), *_tensors(engine.optimizer.state_dict())]
    static = sum({id(t): t.numel() * t.element_size() for t in tensors}.values())
    assert prediction.peak_bytes - prediction.step_bytes == pytest.approx(static, rel=1e-3)
    assert prediction.step_bytes == pytest.approx(step, rel=0.10)
    assert prediction.peak_bytes == pytest.approx(static + step, rel=0.10)


def _tensors(tree):
    if isinstance(tree, torch.Tensor):
        return [tree]
    return [t for value in tree.values() for t in _tensors(value)] if isinstance(tree, dict) else []


@pytest.mark.parametrize("case", SHORT, ids=name_of)
def test_a_step_takes_what_was_predicted(case):
    check(*case)


@pytest.mark.long
@pytest.mark.parametrize("case", LONG, ids=name_of)
def test_steps_of_all_kinds_take_what_was_predicted(case):
    check(*case)


def test_what_is_alive_at_the_peak_adds_up_to_it():
    engine, _, costs = made("resnet18", 4, LIGHT, 4, {})
    prediction = predict(engine.plan, costs)
    assert sum(one.bytes for one in prediction.alive) == prediction.peak_bytes
    assert max(levels(engine.plan, costs)) == prediction.peak_bytes
    assert prediction.of("saved") > prediction.of("gradient") > 0


@pytest.mark.parametrize("samples", [8, 40, 256])
def test_interpolated_costs_are_near_measured_ones(samples):
    """FLOPs and what is kept to the byte; peaks move from one operator to another with the batch."""
    assert samples not in BATCHES
    engine = Engine(build("resnet18", 10), PAPER, 4, input_shape=(3, 64, 64))
    found = []
    for straight in (False, True):
        parts = measure_parts(engine.backbone, (3, 64, 64), samples, torch.float32, device="cpu", straight=straight)
        images = (samples, 3, 64, 64)
        costs = combine(
            *(parts, engine.partition, engine.supervision, images, torch.float32), device="cpu", straight=straight
        )
        found.append((predict(engine.plan, costs), costs))
    (exact, costs), (straight, others) = found
    assert straight.flops == exact.flops
    assert [cost.saved_bytes for cost in others.modules] == [cost.saved_bytes for cost in costs.modules]
    assert straight.step_bytes == pytest.approx(exact.step_bytes, rel=0.05)
