"""The fake of graphs: a capture changes nothing, a replay is the step, and what a graph cannot hold is refused."""

import copy
from weakref import ref

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_flatten

from execute.recording import RecordingGraph, RecordingLanes
from execute.recording_cases import add_and_scale, make_engine, sgd
from mlaan_kernels.sgd_update import Twin, sgd_update


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


def same_state(engine, state):
    found, spec = tree_flatten(engine.state_dict())
    expected, expected_spec = tree_flatten(state)
    assert spec == expected_spec
    assert all(torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in zip(found, expected, strict=True))
