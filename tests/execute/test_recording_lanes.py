"""The fake of streams: on which lane an operator runs, what a wait covers, and what is no race."""

import pytest
import torch

from execute.recording import RecordingLanes
from execute.recording_cases import hand_over, make_engine


def test_a_backward_runs_on_the_lane_of_its_forward():
    """As autograd does it on a device: that lane waits for the caller's, and the caller's for it. Gradients lie in the
    forward's pool, so that its lane has to wait for their readers before they go."""
    w, x = torch.ones(3, requires_grad=True), torch.ones(3)
    for waits in (True, False):
        lanes = RecordingLanes(3)
        with lanes:
            lanes.wait(1, lanes.record(0))
            with lanes.on(1):
                y = (w * x).exp().sum()
            assert lanes.lanes_used == [0, 3, 0]
            lanes.wait(2, lanes.record(1))
            with lanes.on(2):
                ones = torch.ones_like(y)
                [grad] = torch.autograd.grad(y, [w], ones)
                grad.add(1)
            assert lanes.lanes_used == [0, 5, 2]
            assert lanes.overlaps == 0
            event = lanes.record(2)
            if waits:
                lanes.wait(1, event)
            del grad
            with lanes.on(1):
                x.exp()
            for lane in (1, 2):
                lanes.wait(0, lanes.record(lane))
        if waits:
            lanes.check()
        else:
            words = r"aten.exp.default on lane 1 .* freed while lane 2 may still use it in aten.add.Tensor"
            with pytest.raises(AssertionError, match=words):
                lanes.check()


def test_a_backward_runs_on_lane_0_where_its_forward_came_before():
    w, lanes = torch.ones(3, requires_grad=True), RecordingLanes(2)
    older, newest = w.exp(), w.exp()
    with lanes:
        with lanes.on(1), torch.no_grad():
            ones = torch.ones(3)
            torch.autograd.grad(older, [w], ones)
            torch.autograd.grad(newest, [w], ones)
        lanes.wait(0, lanes.record(1))
        assert lanes.lanes_used == [2, 1]
    lanes.check()


def test_lanes_inside_one_another_come_back():
    lanes, x = RecordingLanes(3), torch.ones(3)
    with lanes:
        with lanes.on(1):
            with lanes.on(2):
                x.exp()
            x.exp()
            x.exp()
        x.exp()
    assert lanes.lanes_used == [1, 2, 1]


def test_a_tensor_like_another_does_not_read_it():
    lanes, x = RecordingLanes(2), torch.ones(3)
    hand_over(lanes, False, lambda: x.mul_(2), lambda _: (torch.zeros_like(x), x.new_zeros(2)))
    lanes.check()


def test_what_is_freed_may_go_to_a_lane_that_has_waited_since():
    lanes, x = RecordingLanes(2), torch.ones(3)
    hand_over(lanes, True, lambda: x * 2, lambda y: y + 1)  # lane 1's result, read and let go of on lane 0
    hand_over(lanes, True, lambda: x * 2, lambda y: y + 1)
    lanes.check()


def test_a_lane_that_nobody_waits_for_is_found():
    lanes, x = RecordingLanes(3), torch.ones(3)
    with lanes, lanes.on(2):
        x.add(1)
    with pytest.raises(AssertionError, match=r"lane 0 has not waited for lane 2, whose last operator is aten.add"):
        lanes.check()


def test_an_event_is_of_its_moment():
    """What the lane is given later, it does not cover."""
    lanes, x, z = RecordingLanes(2), torch.ones(3), torch.ones(3)
    with lanes:
        with lanes.on(1):
            x.add_(1)
            event = lanes.record(1)
            z.add_(1)
        lanes.wait(0, event)
        x.add_(1)
        assert not lanes.violations
        z.add_(1)
        assert len(lanes.violations) == 1


def test_lanes_that_share_nothing_overlap_rightly():
    x, z, lanes = torch.ones(3), torch.ones(3), RecordingLanes(2)
    hand_over(lanes, False, lambda: x * 2, lambda _: z * 2)
    lanes.check()
    assert lanes.overlaps == 1
    assert lanes.lanes_used == [1, 1]


def test_orders_pass_on_through_a_third_lane():
    x, lanes = torch.ones(3), RecordingLanes(3)
    with lanes:
        with lanes.on(1):
            x.mul_(2)
        lanes.wait(2, lanes.record(1))
        lanes.wait(0, lanes.record(2))
        x.mul_(2)
    lanes.check()


def test_a_step_on_one_lane_is_no_race():
    engine, lanes = make_engine(), RecordingLanes(2)
    with lanes:
        engine.step(torch.randn(4, 3, 8, 8, dtype=torch.float64), torch.randint(10, (4,)))
    lanes.check()
    assert lanes.lanes_used[0] > 300
    assert lanes.lanes_used[1] == lanes.overlaps == 0
