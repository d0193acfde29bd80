"""The engine's one forward gives what the two-path schedule gives: gradients, statistics, twins, weights."""

import pytest

from exact.compare import gradient_gap, make_pair, resnet32, state_gap, tiny_imagenet_style
from mlaan import MLAAN

TOLERANCE = 1e-9
CASES = [
    pytest.param(resnet32, modules, MLAAN(preset=preset, reach=2), 16, id=f"resnet32-K{modules}-r2-{preset}")
    for modules in (2, 4, 8, 15)
    for preset in ("paper", "authors")
] + [
    pytest.param(tiny_imagenet_style, modules, MLAAN(preset=preset, reach=3), 32, id=f"imagenet-K{modules}-r3-{preset}")
    for modules in (3, 5, 8)
    for preset in ("paper", "authors")
]
VARIANTS = [
    MLAAN(preset="light"),
    MLAAN(preset="light", reach=4),
    MLAAN(twins="all", ema=0.9),
    MLAAN(twins="none", reach=3),
    MLAAN(reach=1),
    MLAAN(reach=8),
]
MEMORY = [
    {"schedule": schedule, "recompute": recompute, "window": 4 if schedule == "windowed" else 0}
    for schedule in ("lean", "windowed", "full")
    for recompute in ("none", "once", "each")
]


@pytest.mark.parametrize(("model", "modules", "method", "size"), CASES)
def test_one_step_has_the_judges_gradients(model, modules, method, size):
    assert gradient_gap(make_pair(model, modules, method, size), size) < TOLERANCE


@pytest.mark.parametrize(("model", "modules", "method", "size"), CASES)
@pytest.mark.parametrize("steps", [1, 4])
def test_steps_move_all_state_as_the_judge_does(model, modules, method, size, steps):
    assert state_gap(make_pair(model, modules, method, size), size, steps) < TOLERANCE


@pytest.mark.parametrize("method", VARIANTS, ids=repr)
def test_variants(method):
    assert gradient_gap(make_pair(tiny_imagenet_style, 8, method, 32), 32) < TOLERANCE
    assert state_gap(make_pair(tiny_imagenet_style, 8, method, 32), 32, 3) < TOLERANCE


@pytest.mark.parametrize("preset", ["paper", "authors"])
@pytest.mark.parametrize("memory", MEMORY, ids=lambda m: f"{m['schedule']}-{m['recompute']}")
def test_every_schedule_and_recomputation(memory, preset):
    method = MLAAN(preset=preset, reach=3)
    assert gradient_gap(make_pair(tiny_imagenet_style, 8, method, 32, **memory), 32) < TOLERANCE
    assert state_gap(make_pair(tiny_imagenet_style, 8, method, 32, **memory), 32, 3) < TOLERANCE
