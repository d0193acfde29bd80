"""Steps on several streams: the eager executor's gradients and updates, and no race, as a recording fake sees it."""

from dataclasses import replace

import pytest
import torch

from execute.recording import RecordingLanes
from mlaan import DGL, MLAAN, EndToEnd, Engine
from mlaan.config import SGDConfig
from mlaan.execute import step_state
from mlaan.execute.lanes import Crossing
from mlaan.execute.streams import StreamExecutor
from mlaan.models import CifarResNet
from mlaan.plan.lanes import TaskTime, assign, simulate

SHAPE = (3, 3, 8, 8)
STEPS = 3


def engine(method, **named):
    torch.manual_seed(0)
    net = CifarResNet(14).double()
    return Engine(net, method, 4, input_shape=SHAPE[1:], learning_rate=0.0625, **named)


def on_lanes(made, count, lanes=None):
    """The engine with its executor on fake lanes, every task as long as the others."""
    eager = made.executor

    def lanes_for(shape):
        times = [TaskTime(1.0, 0.25)] * len(eager.plan.steps)
        tried = [assign(eager.plan, times, count, trunks) for trunks in range(1, count + 1)]
        return min(tried, key=lambda lanes: simulate(eager.plan, lanes, times).seconds)

    made.executor = StreamExecutor(
        eager.plan,
        type("Losses", (), {"losses": eager.losses})(),
        eager.work,
        eager.states,
        eager.optimizer,
        eager.weights,
        eager.heads,
        eager.kernels,
        eager.loss_scale,
        lanes_for=lanes_for,
        make_lanes=lambda urgent: lanes or RecordingLanes(len(urgent)),
    )
    return made


def batch(step):
    random = torch.Generator().manual_seed(step)
    images = torch.randn(SHAPE, generator=random, dtype=torch.float64)
    return images, torch.randint(10, SHAPE[:1], generator=random)


def run(made, lanes, steps=STEPS):
    """Losses of some steps, under the fake from the second on: the first one runs on one lane."""
    losses = [made.step(*batch(0)).losses]
    for step in range(1, steps):
        data = batch(step)
        with lanes:
            losses.append(made.step(*data).losses)
    return losses


def tensors(made):
    state = made.state_dict()
    return {(part, key): value for part in ("backbone", "heads", "optimizer") for key, value in state[part].items()}


METHODS = [DGL(), MLAAN(), MLAAN(preset="light", reach=3), MLAAN(preset="fast"), MLAAN(leap="live"), EndToEnd()]
MEMORY = [
    {"schedule": "lean"},
    {"schedule": "windowed", "window": 3},
    {"schedule": "full"},
    {"schedule": "full", "recompute": "once"},
    {"schedule": "lean", "recompute": "each"},
    {"schedule": "full", "recompute": "fused"},
]
CASES = [(METHODS[i], memory) for i in (0, 1) for memory in MEMORY]
CASES += [(METHODS[2], MEMORY[0]), (METHODS[2], MEMORY[5]), (METHODS[3], MEMORY[2]), (METHODS[4], MEMORY[2])]
CASES += [(METHODS[5], MEMORY[3])]


@pytest.mark.parametrize(
    ("method", "memory", "count"), [(*case, 2 + number % 2) for number, case in enumerate(CASES)], ids=repr
)
def test_streams_give_the_eager_steps_without_a_race(method, memory, count):
    window = {"window": 4} if memory.get("window") == 3 and method == METHODS[2] else {}
    eager, lanes = engine(method, **memory | window), RecordingLanes(count)
    streams = on_lanes(engine(method, **memory | window), count, lanes)
    wanted = [eager.step(*batch(step)).losses for step in range(STEPS)]
    found = run(streams, lanes)
    lanes.check()
    assert all(torch.equal(a, b) for a, b in zip(wanted, found, strict=True))
    ours, theirs = tensors(streams), tensors(eager)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert lanes.overlaps or isinstance(method, EndToEnd)


@pytest.mark.parametrize("clip", ["global", "module"])
def test_clipping_and_loss_scales_have_no_race_either(clip):
    torch.manual_seed(0)
    made = Engine(
        CifarResNet(14),
        MLAAN(),
        4,
        input_shape=SHAPE[1:],
        schedule="full",
        precision="float16",
        optim=SGDConfig(clip=clip, clip_norm=0.1),
    )
    lanes = RecordingLanes(3)
    on_lanes(made, 3, lanes)
    for step in range(2):
        images, labels = batch(step)
        if step:
            with lanes:
                made.step(images.float(), labels)
        else:
            made.step(images.float(), labels)
    lanes.check()
    assert lanes.overlaps


@pytest.mark.parametrize("method", [MLAAN(), DGL()], ids=repr)
def test_steps_without_update_and_those_after_them_have_no_race(method):
    eager, lanes = engine(method, schedule="full"), RecordingLanes(3)
    streams = on_lanes(engine(method, schedule="full"), 3, lanes)
    for step in range(4):
        with lanes:
            for one in (eager, streams):
                (one.gradients if step == 1 else one.step)(*batch(step))
    lanes.check()
    ours, theirs = tensors(streams), tensors(eager)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_an_error_in_a_step_leaves_no_lane_behind(monkeypatch):
    lanes = RecordingLanes(3)
    made = on_lanes(engine(MLAAN(), schedule="full"), 3, lanes)
    made.step(*batch(0))
    carry = step_state.StepState._carry

    def failing(self, tasks, **named):
        if tasks[0].module == 1:
            raise RuntimeError("planted")
        carry(self, tasks, **named)

    monkeypatch.setattr(step_state.StepState, "_carry", failing)
    with lanes, pytest.raises(RuntimeError, match="planted"):
        made.step(*batch(1))
    lanes.check()


def waits_of(lanes_plan):
    return [(place, need) for place, needs in enumerate(lanes_plan.waits) for need in needs]


def test_every_event_is_needed():
    """Leave out any one wait of the plan, and the fake sees a race.

    Heads of dense cotangents: a light head's is not added to others where it comes in, so that it need not wait.
    """
    lanes = RecordingLanes(3)
    made = on_lanes(engine(MLAAN(base="dgl"), schedule="full"), 3, lanes)
    made.step(*batch(0))
    right = made.executor.lanes_for(SHAPE)
    missed = []
    for place, need in waits_of(right):
        waits = tuple(tuple(one for one in needs if (at, one) != (place, need)) for at, needs in enumerate(right.waits))
        fake = RecordingLanes(3)
        made.executor.ways = {SHAPE: (replace(right, waits=waits), fake)}
        with fake:
            made.step(*batch(1))
        try:
            fake.check()
        except AssertionError:
            continue
        missed.append(f"{made.plan.steps[place].task} after {made.plan.steps[need].task}")
    assert not missed


@pytest.mark.parametrize("bug", ["nothing is held", "no join", "no fork"])
def test_planted_bugs_are_seen(monkeypatch, bug):
    if bug == "nothing is held":
        monkeypatch.setattr(step_state.StepState, "tensors", lambda self, step: iter(()))
    elif bug == "no join":
        monkeypatch.setattr(Crossing, "join", lambda self: None)
        monkeypatch.setattr(Crossing, "close", lambda self: None)
    else:
        monkeypatch.setattr(Crossing, "_meet", lambda self, first, then: None)
    lanes = RecordingLanes(3)
    made = on_lanes(engine(MLAAN()), 3, lanes)
    run(made, lanes)
    with pytest.raises(AssertionError, match="violations"):
        lanes.check()
