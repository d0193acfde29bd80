"""Lanes: what waits for what, where steps go, and what a device that is full makes of it."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlaan.plan import Kind, Task, make_plan
from mlaan.plan.lanes import TaskTime, assign, choose_lanes, simulate, step_needs
from mlaan.plan.timeline import step_name
from plan.test_schedule import graph_of, mlaan_graph


def even(plan, share=0.25):
    return [TaskTime(1.0, share)] * len(plan.steps)


def supervisions():
    def losses(modules):
        one = st.tuples(st.integers(0, modules - 1), st.integers(1, 4))
        return st.lists(one, min_size=1, max_size=8).map(lambda some: (modules, some))

    return st.integers(1, 6).flatmap(losses)


@given(supervisions(), st.sampled_from(["lean", "full"]), st.sampled_from(["none", "once", "each"]), st.integers(1, 4))
@settings(max_examples=150, deadline=None)
def test_every_need_is_met_by_order_and_waits_alone(supervision, schedule, recompute, count):
    plan = make_plan(graph_of(*supervision), schedule, 0, recompute)
    lanes = assign(plan, even(plan), count)
    before = []  # for each step all that is over when it starts, as lanes' orders and waits alone say
    last = {}
    for place, lane in enumerate(lanes.lane):
        sure = set()
        for one in (*lanes.waits[place], *([last[lane]] if lane in last else [])):
            sure |= before[one] | {one}
        before.append(sure)
        last[lane] = place
        assert step_needs(plan)[place] <= sure
        assert all(lanes.lane[need] != lane for need in lanes.waits[place])


def test_no_wait_says_what_others_say_already():
    plan = make_plan(mlaan_graph(6, 2), "full")
    lanes = assign(plan, even(plan), 3)
    for place, waits in enumerate(lanes.waits):
        for left_out in waits:
            known, todo = set(), [one for one in waits if one != left_out]
            todo += [one for one in range(place) if lanes.lane[one] == lanes.lane[place]]
            while todo:
                one = todo.pop()
                if one not in known:
                    known.add(one)
                    todo += lanes.waits[one]
                    todo += [other for other in range(one) if lanes.lane[other] == lanes.lane[one]]
            assert left_out not in known


def test_a_modules_passes_share_a_lane():
    plan = make_plan(mlaan_graph(5, 3), "full", 0, "each")
    lanes = assign(plan, even(plan), 3)
    passes = (Kind.FORWARD, Kind.REBUILD, Kind.PROPAGATE, Kind.BACKWARD)
    homes = {}
    for step, lane in zip(plan.steps, lanes.lane, strict=True):
        if step.task.kind in passes:
            homes.setdefault(step.task.module, set()).add(lane)
    assert all(len(home) == 1 for home in homes.values())
    assert len(set(lanes.lane)) == 3


def test_tasks_that_leave_the_device_room_run_beside_each_other():
    plan = make_plan(graph_of(4, [(m, 1) for m in range(4)]), "full")
    alone = simulate(plan, assign(plan, even(plan), 1), even(plan))
    beside = simulate(plan, choose_lanes(plan, even(plan)), even(plan))
    assert alone.seconds == len(plan.steps)
    assert beside.seconds < 0.7 * alone.seconds
    assert alone.overlap == 0
    assert beside.overlap >= 0.5


def test_tasks_that_fill_the_device_gain_nothing_and_get_one_lane():
    plan = make_plan(mlaan_graph(4, 2), "full")
    full = even(plan, 1.0)
    assert simulate(plan, assign(plan, full, 3), full).seconds == pytest.approx(len(plan.steps))
    assert choose_lanes(plan, full).count == 1
    assert choose_lanes(plan, even(plan)).count > 1


def test_a_simulated_step_keeps_every_order():
    plan = make_plan(mlaan_graph(5, 2), "lean")
    times = [TaskTime(1.0 + place % 3, 0.2 + 0.2 * (place % 4)) for place in range(len(plan.steps))]
    lanes = assign(plan, times, 3)
    timeline = simulate(plan, lanes, times, list(range(len(plan.steps))))
    at = {span.name: span for span in timeline.spans}
    for place, step in enumerate(plan.steps):
        for need in step_needs(plan)[place]:
            assert at[step_name(plan.steps[need])].end <= at[step_name(step)].start + 1e-9
    assert sorted(level for _, level in timeline.memory) == list(range(len(plan.steps)))
    assert timeline.seconds >= max(time.seconds for time in times)


def test_urgent_lanes_hold_the_longest_chain():
    plan = make_plan(mlaan_graph(4, 2), "lean")
    times = [TaskTime(0.01 if step.task.kind is Kind.UPDATE else 1.0, 0.2) for step in plan.steps]
    lanes = assign(plan, times, 4, 1)
    assert any(lanes.urgent)
    first = lanes.lane[[step.task for step in plan.steps].index(Task(Kind.FORWARD, 0))]
    assert lanes.urgent[first]
    assert not all(lanes.urgent)
