"""Loss scales: exact where nothing overflows, and an overflow skips what it reaches and nothing else."""

import pytest
import torch

from mlaan import DGL, MLAAN, EndToEnd, Engine
from mlaan.execute import LossScale, step_state
from mlaan.execute.head_calls import HeadCalls
from mlaan.execute.loss_scale import INTERVAL, LARGEST, START
from mlaan.models import CifarResNet
from mlaan.plan import head_homes
from mlaan_kernels.blocks import Cotangent

SHAPE = (4, 3, 8, 8)
SMALL = 64.0
"""A scale that nothing overflows with here."""


def engine(method, precision="float32", dtype=torch.float32, **named):
    torch.manual_seed(0)
    net = CifarResNet(14).to(dtype)
    return Engine(net, method, 5, input_shape=SHAPE[1:], precision=precision, **named)


def batch(step=0, dtype=torch.float32):
    random = torch.Generator().manual_seed(step)
    return torch.randn(SHAPE, generator=random).to(dtype), torch.randint(10, SHAPE[:1], generator=random)


def with_scales(made, scales):
    home = head_homes(made.supervision)
    homes = [home[id(loss.head)] for loss in made.supervision.losses]
    keeper = LossScale(made.plan.graph, homes, made.device)
    keeper.scales.copy_(torch.tensor(scales[: len(keeper.scales)]))
    made.executor.loss_scale = made.loss_scale = keeper
    return made


METHODS = [MLAAN(), MLAAN(preset="light", reach=3), MLAAN(preset="fast"), DGL(), EndToEnd()]


@pytest.mark.parametrize("method", METHODS, ids=repr)
@pytest.mark.parametrize("memory", [{}, {"schedule": "full", "recompute": "fused"}], ids=repr)
def test_powers_of_two_round_nothing(method, memory):
    """Whatever the scales, each loss with one of its own: gradients are those without, to float64's last bits."""
    scales = [2.0 ** (7 * i % 11 - 3) for i in range(20)]
    plain, scaled = (engine(method, dtype=torch.float64, **memory) for _ in range(2))
    with_scales(scaled, scales)
    for made in (plain, scaled):
        made.gradients(*batch(dtype=torch.float64))
    pairs = zip(plain._names().items(), scaled._names(), strict=True)
    for (weight, name), other in pairs:
        if weight.grad is not None:
            torch.testing.assert_close(other.grad, weight.grad, rtol=1e-13, atol=1e-15, msg=name)


def overflow(monkeypatch, victim, step):
    """The cotangent of loss `victim` is infinite in one place in the given step, counted by its calls."""
    run, calls = HeadCalls.run, []

    def bad(self, places, *others):
        results = run(self, places, *others)
        if victim in places:
            calls.append(1)
            at = places.index(victim)
            if len(calls) == step + 1:
                dense, pooled = (
                    None if part is None else part.index_fill(0, torch.tensor(0), torch.inf)
                    for part in (results[at].cotangent.dense, results[at].cotangent.pooled)
                )
                results[at] = results[at]._replace(cotangent=Cotangent(dense, pooled))
        return results

    monkeypatch.setattr(HeadCalls, "run", bad)


def snapshot(made):
    weights = [[w.detach().clone() for w in group] for group in made.executor.weights]
    twins = [[t.clone() for _, t, _ in group.twins] for group in made.optimizer.groups]
    return weights, twins


@pytest.mark.parametrize("schedule", ["lean", "full"])
@pytest.mark.parametrize("preset", ["light", "paper"])
def test_an_overflow_skips_exactly_the_modules_that_its_loss_reaches(monkeypatch, preset, schedule):
    made = engine(MLAAN(preset=preset), "float16", schedule=schedule)
    victim = made.loss_names.index("3.cascaded")
    assert made.supervision.losses[victim].reach == 2
    made.loss_scale.scales.fill_(SMALL)
    overflow(monkeypatch, victim, step=1)
    made.step(*batch())
    weights, twins = snapshot(made)
    made.step(*batch(1))
    stayed = [
        all(torch.equal(w, old) for w, old in zip(group, before, strict=True))
        for group, before in zip(made.executor.weights, weights, strict=True)
    ]
    assert stayed == [False, False, True, True, False]
    for module, (group, before) in enumerate(zip(made.optimizer.groups, twins, strict=True)):
        moved = [not torch.equal(t, old) for (_, t, _), old in zip(group.twins, before, strict=True)]
        assert not any(moved) if module in (2, 3) else all(moved)
    wanted = torch.full_like(made.loss_scale.scales, SMALL)
    wanted[victim] /= 2
    assert torch.equal(made.loss_scale.scales, wanted)
    assert made.loss_scale.skipped.tolist() == [0, 0, 1, 1, 0]
    made.step(*batch(2))
    assert made.loss_scale.skipped.tolist() == [0, 0, 1, 1, 0]
    assert all(
        not torch.equal(group[0], before[0]) for group, before in zip(made.executor.weights, weights, strict=True)
    )
    assert torch.isfinite(made.step(*batch(3)).losses).all()


def test_an_overflow_in_a_modules_own_backward_is_laid_to_all_losses_that_reach_it():
    made = with_scales(engine(MLAAN(preset="light")), [START] * 20)
    graph = made.plan.graph
    keeper = made.loss_scale
    sound = torch.ones(len(graph.heads), dtype=torch.bool)
    modules = torch.tensor([True, False, True, True, True])
    keeper.end(sound, modules)
    reaching = {name for name, scale in zip(made.loss_names, keeper.scales, strict=True) if scale == START / 2}
    assert reaching == {"1.independent", "1.cascaded", "2.cascaded"}
    assert keeper.skipped.tolist() == [0, 1, 0, 0, 0]


def test_scales_double_after_a_long_time_without_overflow_and_stay_within_bounds():
    made = with_scales(engine(DGL()), [START] * 20)
    keeper = made.loss_scale
    good = torch.ones(len(keeper.scales), dtype=torch.bool), torch.ones(5, dtype=torch.bool)
    for _ in range(INTERVAL):
        keeper.end(*good)
    assert keeper.scales.tolist() == [2 * START] * 5
    assert not keeper.clean.any()
    keeper.scales.fill_(LARGEST)
    keeper.clean.fill_(INTERVAL - 1)
    keeper.end(*good)
    assert keeper.scales.tolist() == [LARGEST] * 5


def test_an_overflow_of_weight_gradients_alone_keeps_infinities_out_of_the_weights():
    """A scale that only one module's own backward overflows with: its Update is left out, and training goes on."""
    made = engine(DGL(), "float16")
    made.loss_scale.scales.fill_(SMALL)
    made.step(*batch())
    run = made.executor.work[2].backward

    def overflowing(*arguments):
        inputs, grads = run(*arguments)
        return inputs, [None if grad is None else grad * torch.inf for grad in grads]

    made.executor.work[2].backward = overflowing
    weights, _ = snapshot(made)
    skipped = made.loss_scale.skipped.clone()
    made.step(*batch(1))
    assert (made.loss_scale.skipped - skipped).tolist() == [0, 0, 1, 0, 0]
    assert all(torch.equal(w, old) for w, old in zip(made.executor.weights[2], weights[2], strict=True))
    assert all(torch.isfinite(w).all() for group in made.executor.weights for w in group)


def test_a_head_that_modules_share_stops_the_module_that_it_moves_with(monkeypatch):
    """`fast`: one leap network for a stage, moved with the last module that it taps."""
    made = engine(MLAAN(preset="fast", reach=1), "float16")
    home = head_homes(made.supervision)
    victim = next(i for i, loss in enumerate(made.supervision.losses) if home[id(loss.head)] != loss.module)
    loss = made.supervision.losses[victim]
    made.loss_scale.scales.fill_(SMALL)
    overflow(monkeypatch, victim, step=1)
    made.step(*batch())
    before = made.loss_scale.skipped.clone()
    made.step(*batch(1))
    stopped = (made.loss_scale.skipped - before).bool()
    assert stopped[loss.module]
    assert stopped[home[id(loss.head)]]
    assert stopped.sum() == 2


def test_an_overflow_begins_the_count_anew():
    made = with_scales(engine(DGL()), [START] * 20)
    keeper = made.loss_scale
    keeper.clean.fill_(INTERVAL - 1)
    sound = torch.tensor([True, True, False, True, True])
    keeper.end(sound, torch.ones(5, dtype=torch.bool))
    assert keeper.clean.tolist() == [0, 0, 0, 0, 0]  # the others doubled just now
    assert keeper.scales.tolist() == [2 * START, 2 * START, START / 2, 2 * START, 2 * START]
    keeper.clean[2] = 7
    keeper.end(sound, torch.ones(5, dtype=torch.bool))
    assert keeper.clean.tolist() == [1, 1, 0, 1, 1]


def test_scaling_goes_by_float32():
    """2**16 is beyond float16, and so are factors between scales far apart."""
    small = torch.full((4,), 2.0**-14, dtype=torch.float16)
    assert Cotangent(dense=small).scaled(torch.tensor(2.0**16)).dense.tolist() == [4.0] * 4


@pytest.mark.parametrize("schedule", ["lean", "full"])
def test_what_goes_on_keeps_a_scale_of_its_own(monkeypatch, schedule):
    """It is never brought to the least scale of all that a module's weight gradients are summed in."""
    arrive, scales = step_state.StepState._arrive, []

    def noted(self, module, left, cotangent, scaled):
        scales.append(scaled[0])
        arrive(self, module, left, cotangent, scaled)

    monkeypatch.setattr(step_state.StepState, "_arrive", noted)
    made = engine(MLAAN(preset="light", reach=3), "float16", schedule=schedule)
    made.gradients(*batch())
    assert set(scales) == {"head", "group"}


def test_gradients_too_small_for_float16_survive_by_their_scale():
    """Without a scale most of a far loss's small cotangents would be 0 in float16."""
    torch.manual_seed(0)
    cotangent = Cotangent(dense=torch.full((1000,), 2.0**-26))
    assert not cotangent.dense.half().any()
    made = with_scales(engine(DGL()), [START] * 20)
    scaled = cotangent.scaled(made.loss_scale.begin().of("head", 0)).dense.half()
    assert torch.equal(scaled.float() / START, cotangent.dense)


def test_a_saved_state_keeps_scales_and_counts():
    first, second = (engine(MLAAN(preset="light"), "float16") for _ in range(2))
    first.step(*batch())
    first.loss_scale.scales[1] = 2.0
    first.loss_scale.skipped[2] = 7
    second.load_state_dict(first.state_dict())
    assert second.loss_scale.scales[1] == 2.0
    assert second.loss_scale.skipped.tolist() == [0, 0, 7, 0, 0]
    assert second.loss_scale.clean.tolist() == [1] * len(second.loss_names)
