"""A test of the tests: each planted bug makes the comparison with the judge fail clearly."""

from contextlib import nullcontext
from dataclasses import replace

import pytest

from exact.compare import gradient_gap, make_pair, state_gap, tiny_imagenet_style
from mlaan import MLAAN
from mlaan.execute import ModuleState, step_state
from mlaan.execute.statistics import RandomState
from mlaan.learning import Supervision
from mlaan.optim.optimizer import Optimizer
from mlaan.plan import schedule

CLEARLY = 1e-6


def pair(**memory):
    return make_pair(tiny_imagenet_style, 8, MLAAN(reach=3), 32, **memory)


def test_without_a_bug_nothing_differs():
    assert gradient_gap(pair(recompute="each"), 32) < 1e-9
    assert state_gap(pair(recompute="each"), 32, 2) < 1e-9


@pytest.mark.parametrize("victim", [0, 4, 9])
def test_one_cotangent_dropped(monkeypatch, victim):
    arrive, seen = step_state.StepState._arrive, []

    def forgetful(self, module, left, cotangent, scaled):
        seen.append(module)
        if len(seen) - 1 != victim:
            arrive(self, module, left, cotangent, scaled)
        elif (module, left) not in self.arrived:
            arrive(self, module, left, replace_by_zero(cotangent), scaled)

    monkeypatch.setattr(step_state.StepState, "_arrive", forgetful)
    assert gradient_gap(pair(), 32) > CLEARLY


def replace_by_zero(cotangent):
    return replace(
        cotangent,
        dense=None if cotangent.dense is None else cotangent.dense * 0,
        pooled=None if cotangent.pooled is None else cotangent.pooled * 0,
    )


@pytest.mark.parametrize("change", [1, -1])
@pytest.mark.parametrize("place", [7, 11, -1])
def test_one_reach_off_by_one(monkeypatch, change, place):
    supervise = MLAAN.supervise

    def wrong(self, site):
        right = supervise(self, site)
        losses = list(right.losses)
        assert losses[place].reach == 3
        losses[place] = replace(losses[place], reach=losses[place].reach + change)
        return Supervision(tuple(losses), right.twins, right.statistics, right.stem_statistics)

    monkeypatch.setattr(MLAAN, "supervise", wrong)
    assert gradient_gap(pair(), 32) > CLEARLY


def test_twin_moved_twice(monkeypatch):
    update = Optimizer.update

    def twice(self, group, finite=None):
        for weight, tensor, keep in self.groups[group].twins:
            tensor.mul_(keep).add_(weight.detach(), alpha=1 - keep)
        update(self, group)

    monkeypatch.setattr(Optimizer, "update", twice)
    assert state_gap(pair(), 32, 2) > CLEARLY


def test_twin_moved_after_the_weights(monkeypatch):
    update = Optimizer.update

    def late(self, group, finite=None):
        twins, self.groups[group].twins = self.groups[group].twins, []
        update(self, group)
        for weight, tensor, keep in twins:
            tensor.mul_(keep).add_(weight.detach(), alpha=1 - keep)
        self.groups[group].twins = twins

    monkeypatch.setattr(Optimizer, "update", late)
    assert state_gap(pair(), 32, 2) > CLEARLY


def test_statistics_moved_in_a_recomputation(monkeypatch):
    monkeypatch.setattr(ModuleState, "frozen", lambda self: nullcontext())
    assert state_gap(pair(recompute="each"), 32, 1) > CLEARLY


def test_random_state_not_replayed(monkeypatch):
    monkeypatch.setattr(RandomState, "replayed", lambda self: nullcontext())
    from exact.test_recompute import dropout_gradients

    kept, rebuilt = dropout_gradients("none"), dropout_gradients("each")
    assert any((a - b).norm() > CLEARLY * b.norm() for a, b in zip(rebuilt, kept, strict=True))


def test_weights_updated_before_a_twins_reader(monkeypatch):
    """An order that ignores who still reads a twin shows up as a difference."""
    from exact.compare import resnet34_leaps

    assert state_gap(make_pair(resnet34_leaps, 16, MLAAN(reach=3), 32), 32, 2) < 1e-9
    make_plan = schedule.make_plan

    def hasty(graph, *policy):
        needs = {
            t: tuple(n for n in ns if n.kind.value != "Head") if t.kind.value == "Update" else ns
            for t, ns in graph.needs.items()
        }
        return make_plan(replace(graph, needs=needs), *policy)

    monkeypatch.setattr("mlaan.engine.make_plan", hasty)
    assert state_gap(make_pair(resnet34_leaps, 16, MLAAN(reach=3), 32), 32, 2) > CLEARLY
