"""Graph and schedules: passes per module, order, live window, lifetimes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mlaan import LocalLoss, Supervision, UserError
from mlaan.learning import PoolLinear
from mlaan.plan import Kind, StepPlan, Task, build_graph, make_plan


def graph_of(modules, reaches):
    """`reaches`: (tapped module, reach) of each loss."""
    losses = [LocalLoss(tap, nn.Linear(1, 1), reach, kind=str(n)) for n, (tap, reach) in enumerate(reaches)]
    return build_graph(modules, Supervision(tuple(losses)), [nn.Linear(1, 1) for _ in range(modules)])


def mlaan_graph(modules, reach):
    both = [(i, r) for i in range(modules - 1) for r in (1, min(reach, i + 1))]
    return graph_of(modules, [*both, (modules - 1, reach)])


def counts(plan: StepPlan, module):
    kinds = [task.kind.value[0] for step in plan.steps for task in step.tasks if task.module == module]
    return "".join(kinds)


def words(plan):
    return " ".join(str(task).replace(" ", "") for step in plan.steps for task in step.tasks)


def test_end_to_end_is_one_ordinary_backward():
    plan = make_plan(graph_of(3, [(2, 3)]))
    assert words(plan) == (
        "Forward(0) Forward(1) Forward(2) Head(2,0) Backward(2) Update(2) Backward(1) Update(1) Backward(0) Update(0)"
    )
    assert plan.window == 3


def test_isolated_modules_are_gone_before_the_next_begins():
    plan = make_plan(graph_of(3, [(0, 1), (1, 1), (2, 1)]))
    assert words(plan).startswith("Forward(0) Head(0,0) Backward(0) Update(0) Forward(1)")
    assert plan.window == 1


@pytest.mark.parametrize("reach", [1, 2, 3, 4])
@pytest.mark.parametrize("modules", [1, 4, 8])
def test_mlaan_costs_reach_plus_two(modules, reach):
    """One forward, one weight pass, and reach - 1 data-gradient passes; fewer at the edges."""
    plan = make_plan(mlaan_graph(modules, min(reach, modules)))
    for m in range(modules):
        passes = counts(plan, m)
        assert passes.count("F") == passes.count("B") == passes.count("U") == 1
        # the groups that still have reach left below this module, each cut off at module 0
        expected = len({min(r, m + 1) for r in range(2, reach + 1) if m + reach - r < modules} - {1})
        if m == modules - 1:
            expected = 0  # its only group goes on in its one backward
        assert passes.count("P") == expected
    assert plan.window == min(reach, modules)


def test_groups_merge_where_reach_no_longer_tells_them_apart():
    graph = graph_of(3, [(2, 3), (2, 7), (1, 2)])
    assert graph.groups == ((1,), (2,), (3,))
    assert graph.merged(1)
    assert graph.merged(2)
    apart = graph_of(3, [(2, 2), (2, 3)])
    assert apart.groups == ((1,), (1, 2), (2, 3))
    assert not apart.merged(2)
    assert [str(t) for t in apart.passes(2)] == ["Propagate(2, 2)", "Propagate(2, 3)", "Backward(2)"]


def test_a_module_that_no_loss_reaches_is_only_run():
    plan = make_plan(graph_of(3, [(2, 1)]))
    assert counts(plan, 0) == "FU"
    assert [step.keep for step in plan.steps if step.task.kind is Kind.FORWARD] == [False, False, True]


def test_windowed_sweeps_back_when_the_window_is_full():
    plan = make_plan(mlaan_graph(6, 2), "windowed", 4)
    assert words(plan).startswith("Forward(0) Forward(1) Forward(2) Forward(3) Head(3,6)")
    forwards = [i for i, s in enumerate(plan.steps) if s.task.kind is Kind.FORWARD]
    backwards = {t.module: i for i, s in enumerate(plan.steps) for t in s.tasks if t.kind is Kind.BACKWARD}
    # all but the newest are retired before the next forward
    assert max(backwards[m] for m in (0, 1, 2)) < forwards[4] < backwards[3]
    assert plan.window == 4
    assert make_plan(mlaan_graph(6, 2), "full").window == 6


@pytest.mark.parametrize("window", [2, 7])
def test_a_window_that_does_not_fit(window):
    with pytest.raises(UserError, match=f"memory.window = {window} must be from 3, the largest reach, to 6"):
        make_plan(mlaan_graph(6, 3), "windowed", window)


def test_wrong_supervisions():
    with pytest.raises(UserError, match=r"reach = 0 of loss 0.0 must be at least 1"):
        graph_of(2, [(0, 0)])
    with pytest.raises(UserError, match=r"module = 2 .* must be from 0 to 1"):
        graph_of(2, [(2, 1)])
    with pytest.raises(UserError, match="at least one local loss"):
        graph_of(2, [])
    same = tuple(LocalLoss(module, nn.Linear(1, 1), kind="own") for module in (0, 1, 1))
    with pytest.raises(UserError, match="kind = 'own' names 2 losses of module 1, and logs would take them for one"):
        build_graph(2, Supervision(same), [nn.Linear(1, 1) for _ in range(2)])


@st.composite
def plans(draw):
    modules = draw(st.integers(1, 7))
    taps = st.tuples(st.integers(0, modules - 1), st.integers(1, 9))
    graph = graph_of(modules, draw(st.lists(taps, min_size=1, max_size=9)))
    largest = max(max(g) for g in graph.groups if g)
    schedule = draw(st.sampled_from(["lean", "windowed", "full"]))
    window = draw(st.integers(largest, modules)) if schedule == "windowed" else 0
    recompute = draw(st.sampled_from(["none", "once", "each"]))
    return make_plan(graph, schedule, window, recompute), largest, schedule, recompute


@given(plans())
def test_every_plan_is_sound(drawn):
    """Every task once, after what it needs; saved tensors there when used and gone when no longer."""
    plan, largest, schedule, recompute = drawn
    done: set[Task] = set()
    alive: set[int] = set()
    for step in plan.steps:
        for task in step.tasks:
            assert task not in done or task.kind is Kind.REBUILD
            assert done.issuperset(plan.graph.needs.get(task, ()))
            if step.keep or task.kind is Kind.REBUILD:
                assert task.module not in alive
                alive.add(task.module)
            if task.kind in (Kind.PROPAGATE, Kind.BACKWARD):
                assert task.module in alive
            done.add(task)
        assert len({task.module for task in step.tasks}) == 1
        assert len(alive) <= plan.window
        assert alive.issuperset(step.drops)
        alive -= set(step.drops)
    assert not alive
    assert done.issuperset(plan.graph.needs)
    if schedule == "lean":
        assert plan.window <= largest
    rebuilds = [plan.rebuilds(m) for m in range(plan.graph.modules)]
    assert recompute != "none" or not any(rebuilds)
    assert recompute != "once" or max(rebuilds) <= 1
    assert recompute != "each" or plan.window <= 1


def test_a_modules_passes_share_a_step_where_they_can():
    """In a window Propagate and Backward read what is saved once; lean cannot wait for the last cotangent."""
    full = make_plan(mlaan_graph(4, 2), "full")
    together = [step.tasks for step in full.steps if step.task.kind is Kind.PROPAGATE]
    assert [" ".join(map(str, tasks)) for tasks in together] == [
        "Propagate(2, 2) Backward(2)",
        "Propagate(1, 2) Backward(1)",
    ]
    lean = make_plan(mlaan_graph(4, 2), "lean")
    assert all(len(step.tasks) == 1 for step in lean.steps if step.task.kind is Kind.PROPAGATE)
    rebuilt = make_plan(mlaan_graph(4, 2), "full", 0, "each")
    assert [rebuilt.rebuilds(m) for m in range(4)] == [1, 1, 1, 0]
    assert all(step.drops for step in rebuilt.steps if Kind.BACKWARD in {task.kind for task in step.tasks})


def test_light_heads_of_one_width_share_a_step():
    heads = [PoolLinear(4, 10), PoolLinear(4, 10), PoolLinear(8, 10)]
    losses = [LocalLoss(0, heads[0], kind="a"), LocalLoss(0, heads[1], kind="b"), LocalLoss(1, heads[2])]
    plan = make_plan(build_graph(2, Supervision(tuple(losses)), [nn.Linear(1, 1) for _ in range(2)]))
    called = [" ".join(map(str, step.tasks)) for step in plan.steps if step.task.kind is Kind.HEAD]
    assert called == ["Head(0, 0) Head(0, 1)", "Head(1, 2)"]


@pytest.mark.parametrize("schedule", ["lean", "full"])
def test_a_common_norm_is_a_barrier_between_all_gradients_and_all_updates(schedule):
    losses = [LocalLoss(m, nn.Linear(1, 1), 2, kind=str(m)) for m in range(4)]
    modules = [nn.Linear(1, 1) for _ in range(4)]
    plan = make_plan(build_graph(4, Supervision(tuple(losses)), modules, global_norm=True), schedule)
    kinds = [task.kind for step in plan.steps for task in step.tasks]
    at = kinds.index(Kind.NORM)
    assert Kind.NORM not in kinds[at + 1 :]
    assert not {Kind.HEAD, Kind.BACKWARD} & set(kinds[at:])
    assert kinds[at + 1 :] == [Kind.UPDATE] * 4
    assert "Norm Update" in words(plan)


def test_heads_that_share_weights_are_told():
    own, shared = nn.Linear(1, 1), nn.Linear(1, 1)
    heads = [own, nn.Sequential(shared, nn.Linear(1, 1)), nn.Linear(1, 1), nn.Sequential(nn.Linear(1, 1), shared)]
    losses = [LocalLoss(m, head) for m, head in enumerate(heads)]
    graph = build_graph(4, Supervision(tuple(losses)), [nn.Linear(1, 1) for _ in range(4)])
    assert graph.weights == (0, 1, 2, 1)
