"""The fake of streams finds every missing wait between two lanes, and nothing where there is one."""

import pytest
import torch
from torch import nn

from execute.recording import RecordingLanes
from execute.recording_cases import add_and_scale, hand_over, sgd


def expect(lanes, ordered, words):
    """No violation where `ordered`, else the one that `words` describe."""
    if ordered:
        lanes.check()
        assert lanes.overlaps == 0
    else:
        with pytest.raises(AssertionError, match=words):
            lanes.check()
        assert lanes.overlaps > 0


with_and_without = pytest.mark.parametrize("ordered", [True, False])


@with_and_without
def test_a_read_waits_for_the_write(ordered):
    x, lanes = torch.ones(2, 3), RecordingLanes(2)
    hand_over(lanes, ordered, lambda: x * 2, lambda y: y + 1)
    words = r"aten.add.Tensor on lane 0 reads a storage of shape \(2, 3\) that aten.mul.Tensor on lane 1 writes"
    expect(lanes, ordered, words)


@with_and_without
def test_a_write_waits_for_the_reads(ordered):
    x, lanes = torch.ones(2, 3), RecordingLanes(2)
    hand_over(lanes, ordered, lambda: x * 2, lambda _: x.add_(1))
    expect(lanes, ordered, "aten.add_.Tensor on lane 0 writes .* that aten.mul.Tensor on lane 1 reads")


@with_and_without
def test_a_write_waits_for_the_write(ordered):
    x, lanes = torch.ones(2, 3), RecordingLanes(2)
    hand_over(lanes, ordered, lambda: x.zero_(), lambda _: x.fill_(1))
    expect(lanes, ordered, "aten.fill_.Scalar on lane 0 writes .* that aten.zero_.default on lane 1 writes")


@with_and_without
def test_a_view_is_its_base(ordered):
    x, lanes = torch.ones(4, 3), RecordingLanes(2)
    view = x[1:3].t()
    hand_over(lanes, ordered, lambda: x.mul_(2), lambda _: view + 1)
    expect(lanes, ordered, "aten.add.Tensor on lane 0 reads")


@with_and_without
def test_a_write_through_a_view_is_one_of_its_base(ordered):
    x, lanes = torch.ones(4, 3), RecordingLanes(2)
    hand_over(lanes, ordered, lambda: x.view(-1)[2:].mul_(2), lambda _: x + 1)
    expect(lanes, ordered, "aten.add.Tensor on lane 0 reads")


@with_and_without
def test_lists_of_tensors_are_looked_through(ordered):
    x, lanes = [torch.ones(3), torch.ones(3)], RecordingLanes(2)
    hand_over(lanes, ordered, lambda: torch.ops.aten._foreach_add_.Scalar(x, 1), lambda _: torch.stack(x))
    expect(lanes, ordered, "aten.(stack|cat).default on lane 0 reads .* aten._foreach_add_.Scalar on lane 1 writes")


@with_and_without
def test_what_was_only_allocated_is_the_lanes(ordered):
    lanes = RecordingLanes(2)
    hand_over(lanes, ordered, lambda: (torch.empty(3), torch.zeros(1))[0], lambda y: y.fill_(1))
    expect(lanes, ordered, "aten.fill_.Scalar on lane 0 writes .* aten.empty.memory_format on lane 1 writes")


@with_and_without
@pytest.mark.parametrize("autograd", [True, False])
def test_batchnorm_writes_its_running_statistics(ordered, autograd):
    norm, lanes = nn.BatchNorm1d(3).requires_grad_(autograd), RecordingLanes(2)
    x = torch.randn(4, 3)
    hand_over(lanes, ordered, lambda: norm(x), lambda _: norm.get_buffer("running_var") + 1)
    expect(lanes, ordered, "aten.add.Tensor on lane 0 reads .*batch_norm.* on lane 1 writes")


@with_and_without
def test_batchnorm_reads_them_in_evaluation(ordered):
    norm, lanes = nn.BatchNorm1d(3).eval(), RecordingLanes(2)
    x = torch.randn(4, 3)
    hand_over(lanes, ordered, lambda: norm(x), lambda _: norm.get_buffer("running_var").zero_())
    expect(lanes, ordered, "aten.zero_.default on lane 0 writes .*batch_norm.* on lane 1 reads")


@with_and_without
@pytest.mark.parametrize("implementation", ["native", "reference"])
def test_an_update_writes_the_weights(ordered, implementation):
    weight, lanes = torch.ones(3, dtype=torch.float64), RecordingLanes(2)

    def update():
        sgd(weight, torch.ones_like(weight), torch.zeros_like(weight), [], implementation)

    hand_over(lanes, ordered, update, lambda _: weight * 2)
    expect(lanes, ordered, r"aten.mul.Tensor on lane 0 reads .* on lane 1 writes")


@with_and_without
def test_a_custom_operator_writes_what_its_schema_says(ordered):
    total, x, lanes = torch.ones(3), torch.ones(3), RecordingLanes(2)
    hand_over(lanes, ordered, lambda: add_and_scale(total, x), lambda _: total * 2)
    expect(lanes, ordered, "aten.mul.Tensor on lane 0 reads .* recording_test.add_and_scale.default on lane 1")


@with_and_without
def test_a_backward_reads_what_its_forward_saved(ordered):
    x, w, lanes = torch.ones(3), torch.ones(3, requires_grad=True), RecordingLanes(3)
    with lanes:
        y = (w * x).sum()
        for lane in (1, 2):
            lanes.wait(lane, lanes.record(0))
        with lanes.on(2):
            x.data.mul_(2)  # past the version counter, which would see this on any device
        if ordered:
            lanes.wait(1, lanes.record(2))
        with lanes.on(1):
            [grad] = torch.autograd.grad(y, [w])
        lanes.wait(0, lanes.record(1))
        lanes.wait(0, lanes.record(2))
    assert grad.tolist() == [2.0, 2.0, 2.0]
    if ordered:
        lanes.check()
    else:
        words = "aten.mul.Tensor on lane 0 reads .* that aten.mul_.Tensor on lane 2 writes"
        with pytest.raises(AssertionError, match=words):
            lanes.check()


@with_and_without
def test_a_storage_that_is_freed_early_is_found(ordered):
    """Lane 0's allocator would give the block away while lane 1 reads it."""
    lanes = RecordingLanes(2)
    with lanes:
        x = torch.ones(5)
        lanes.wait(1, lanes.record(0))
        with lanes.on(1):
            x.view(5)[1:].sum()
        event = lanes.record(1)
        if ordered:
            lanes.wait(0, event)
        del x
        torch.ones(5)
        lanes.wait(0, event)
    if ordered:
        lanes.check()
    else:
        words = r"aten.ones.default on lane 0 .* freed while lane 1 may still use it in aten.sum.default"
        with pytest.raises(AssertionError, match=words):
            lanes.check()


@with_and_without
def test_what_was_there_before_is_lane_zeros(ordered):
    lanes, held = RecordingLanes(2), [torch.ones(5)]
    hand_over(lanes, ordered, lambda: held[0] * 2, lambda _: held.clear() or torch.ones(1))
    expect(lanes, ordered, "aten.ones.default on lane 0 .* freed while lane 1 may still use it in aten.mul.Tensor")
