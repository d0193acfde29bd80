"""The fakes of streams and graphs find what they are for, and nothing else."""

import copy
from collections.abc import Sequence
from weakref import ref

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_flatten

from execute.recording import RecordingGraph, RecordingLanes
from mlaan import MLAAN, Engine
from mlaan.models import CifarResNet
from mlaan_kernels.library import Implementation
from mlaan_kernels.sgd_update import Twin, sgd_update


@torch.library.custom_op("recording_test::add_and_scale", mutates_args=("total",))
def add_and_scale(total: Tensor, x: Tensor) -> Tensor:
    """Adds x to `total`, and gives 3 x."""
    total.add_(x)
    return 3 * x


def sgd(weight: Tensor, grad: Tensor, momentum: Tensor, twins: Sequence[Twin], implementation: Implementation):
    options = {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01}
    sgd_update([weight], [grad], [momentum], twins, learning_rate=0.1, implementation=implementation, **options)


def hand_over(lanes, ordered, first, second):
    """`first` on lane 1, then `second` on lane 0, which waits for it where `ordered`."""
    with lanes:
        lanes.wait(1, lanes.record(0))
        with lanes.on(1):
            made = first()
        event = lanes.record(1)
        if ordered:
            lanes.wait(0, event)
        second(made)
        lanes.wait(0, event)  # the end of the step is in order in any case


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


def test_a_replay_reads_tensors_anew_and_no_floats():
    grad, dial, size = torch.ones(3, dtype=torch.float64), torch.full((1,), 0.5), 0.5
    by_float, by_dial = torch.ones(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)

    def step():
        for weight, learning_rate in ((by_float, size), (by_dial, dial)):
            sgd_update(
                [weight], [grad], [], [], learning_rate=learning_rate, momentum=0, nesterov=False, weight_decay=0
            )
        return by_float.sum()

    total, replay = RecordingGraph().capture(step)
    assert total.isnan()
    assert by_float.tolist() == by_dial.tolist() == [1.0, 1.0, 1.0]  # nothing has moved
    grad.copy_(torch.tensor([1.0, 2.0, 4.0]))
    dial.fill_(0.25)
    size = 0.25
    replay()
    assert by_float.tolist() == [0.5, 0.0, -1.0]
    assert by_dial.tolist() == [0.75, 0.5, 0.0]
    assert total.item() == -0.5
    replay()
    assert by_float.tolist() == [0.0, -1.0, -3.0]
    assert total.item() == -4.0


def test_a_capture_leaves_statistics_and_the_random_state_alone():
    torch.manual_seed(0)
    norm, x, wide = nn.BatchNorm1d(3), torch.randn(4, 3), torch.zeros(4, 6)
    before = copy.deepcopy(norm.state_dict())
    state = torch.get_rng_state()

    def step():
        wide[:, ::2].copy_(F.dropout(norm(x)))
        return wide.argmax(1)

    places, replay = RecordingGraph().capture(step)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(norm.state_dict().values(), before.values(), strict=True))
    assert not wide.any()
    assert (places == torch.iinfo(torch.int64).max).all()
    replay()
    assert norm.num_batches_tracked == 1
    assert wide.any()
    assert places.max() < 6


def test_what_a_capture_makes_is_made_again_by_each_replay():
    """Such as momenta: zeros are zeros again, while what was only allocated keeps what the last replay wrote."""
    made = {}

    def step():
        made["zeros"], made["empty"] = torch.zeros(2), torch.empty(2)
        for one in made.values():
            one.add_(1)

    _, replay = RecordingGraph().capture(step)
    made["empty"].zero_()
    for _ in range(2):
        replay()
    assert made["zeros"].tolist() == [1.0, 1.0]
    assert made["empty"].tolist() == [2.0, 2.0]


def test_dropout_draws_anew():
    x = torch.ones(1000)
    y, replay = RecordingGraph().capture(lambda: F.dropout(x, 0.5))
    seen = []
    for _ in range(2):
        replay()
        seen.append(y.clone())
    assert set(seen[0].tolist()) == {0.0, 2.0}
    assert not torch.equal(*seen)
    torch.manual_seed(3)
    replay()
    torch.manual_seed(3)
    assert torch.equal(y, F.dropout(x, 0.5))


def test_a_custom_operator_replays_its_changes_and_its_results():
    total, x = torch.zeros(2), torch.ones(2)
    y, replay = RecordingGraph().capture(lambda: add_and_scale(total, x) + 1)
    assert total.tolist() == [0.0, 0.0]
    replay()
    x.fill_(2)
    replay()
    assert total.tolist() == [3.0, 3.0]
    assert y.tolist() == [7.0, 7.0]


def test_a_replay_runs_no_autograd_and_forgets_the_graph():
    w, x = torch.ones(3, requires_grad=True), torch.ones(3)
    called, made = [], []

    def step():
        y = (w * x).square()
        y.register_hook(called.append)
        made.append(ref(y))
        return torch.autograd.grad(y.sum(), [w])[0]

    grad, replay = RecordingGraph().capture(step)
    assert len(called) == 1
    assert made[0]() is None
    x.fill_(3)
    replay()
    assert grad.tolist() == [18.0, 18.0, 18.0]
    assert len(called) == 1
    assert w.grad is None


READS = {
    "item": lambda x: x.sum().item(),
    "a branch": lambda x: x.sum() > 0 and x,
    "tolist": lambda x: x.tolist(),
    "numpy": lambda x: x.numpy(),
    "cpu": lambda x: x.cpu(),
    "nonzero": lambda x: x.nonzero(),
    "a mask as an index": lambda x: x[x > 0],
    "a write by a mask": lambda x: x.index_put_((x > 0,), x.sum()),
    "equal": lambda x: torch.equal(x, x),
    "a tensor of numbers": lambda x: x + torch.tensor([1.0, 2.0, 3.0]),
}


@pytest.mark.parametrize("name", READS)
def test_what_waits_for_the_device_is_refused(name):
    x, w = torch.ones(3), torch.zeros(3)

    def step():
        w.add_(x)
        return READS[name](x)

    with pytest.raises(RuntimeError, match="operation not permitted when stream is capturing: "):
        RecordingGraph().capture(step)
    assert not w.any()  # put back in this case, too


def test_an_index_of_numbers_is_not_refused():
    x, places = torch.arange(5.0), torch.zeros(2, dtype=torch.int64)
    y, replay = RecordingGraph().capture(lambda: x[places])
    places.copy_(torch.tensor([3, 1]))
    replay()
    assert y.tolist() == [3.0, 1.0]


@pytest.mark.parametrize("implementation", ["native", "reference"])
def test_updates_replay_bit_for_bit(implementation):
    torch.manual_seed(0)
    start = [torch.randn(4, 5, dtype=torch.float64) for _ in range(3)]  # weight, momentum, twin
    (weight, momentum, twin), eager = [t.clone() for t in start], [t.clone() for t in start]
    grad = torch.zeros_like(weight)

    def step():
        sgd(weight, grad, momentum, [Twin(0, twin, 0.9)], implementation)

    _, replay = RecordingGraph().capture(step)
    for _ in range(3):
        grad.normal_()
        replay()
        sgd(eager[0], grad, eager[1], [Twin(0, eager[2], 0.9)], implementation)
        assert all(torch.equal(a, b) for a, b in zip((weight, momentum, twin), eager, strict=True))


def test_lanes_work_inside_a_capture():
    x, lanes = torch.ones(3), RecordingLanes(2)

    def step(ordered):
        lanes.wait(1, lanes.record(0))
        with lanes.on(1):
            y = x * 2
        if ordered:
            lanes.wait(0, lanes.record(1))
        z = y + 1
        lanes.wait(0, lanes.record(1))
        return z

    with lanes:
        z, replay = RecordingGraph().capture(lambda: step(True))
    lanes.check()
    assert lanes.lanes_used == [1, 1]
    x.fill_(5)
    replay()
    assert z.tolist() == [11.0, 11.0, 11.0]
    with lanes:
        RecordingGraph().capture(lambda: step(False))
    with pytest.raises(AssertionError, match=r"aten.add.Tensor on lane 0 reads"):
        lanes.check()


def make_engine():
    torch.manual_seed(0)
    return Engine(CifarResNet(20).double(), MLAAN(), 3, input_shape=(3, 8, 8), learning_rate=0.1)


def test_a_whole_step_replays_bit_for_bit():
    eager, captured = make_engine(), make_engine()
    images = torch.randn(4, 4, 3, 8, 8, dtype=torch.float64)
    labels = torch.randint(10, (4, 4))
    for engine in (eager, captured):
        engine.step(images[0], labels[0])  # momenta are made on first use
    static = images[0].clone(), labels[0].clone()
    before = copy.deepcopy(captured.state_dict())
    (losses, correct), replay = RecordingGraph().capture(lambda: captured.executor.run(*static))
    assert losses.isnan().all()
    same_state(captured, before)
    for i in range(1, 4):
        static[0].copy_(images[i])
        static[1].copy_(labels[i])
        replay()
        expected = eager.step(images[i], labels[i])
        assert torch.equal(losses, expected.losses)
        assert torch.equal(correct, expected.correct)
    same_state(captured, eager.state_dict())


def test_a_step_on_one_lane_is_no_race():
    engine, lanes = make_engine(), RecordingLanes(2)
    with lanes:
        engine.step(torch.randn(4, 3, 8, 8, dtype=torch.float64), torch.randint(10, (4,)))
    lanes.check()
    assert lanes.lanes_used[0] > 300
    assert lanes.lanes_used[1] == lanes.overlaps == 0


def same_state(engine, state):
    found, spec = tree_flatten(engine.state_dict())
    expected, expected_spec = tree_flatten(state)
    assert spec == expected_spec
    assert all(torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in zip(found, expected, strict=True))
