"""Steps captured once and replayed: the eager executor's, from the first one on, as a recording fake replays them."""

import warnings

import pytest
import torch

import mlaan.engine
from execute.recording import RecordingGraph, RecordingLanes
from execute.test_streams import engine, on_lanes, tensors
from mlaan import DGL, MLAAN, EndToEnd, Engine
from mlaan.config import AdamWConfig, SGDConfig
from mlaan.errors import StepMemoryError
from mlaan.execute import executors
from mlaan.execute.graph import GraphExecutor
from mlaan.models import CifarResNet

STEPS = 5


def batch(step, samples=3):
    random = torch.Generator().manual_seed(step)
    images = torch.randn(samples, 3, 8, 8, generator=random, dtype=torch.float64)
    return images, torch.randint(10, (samples,), generator=random)


def captured(made, lanes=None):
    """The engine with its steps captured, on fake lanes if any."""
    if lanes is not None:
        on_lanes(made, lanes.count, lanes)
    made.executor = GraphExecutor(made.executor, RecordingGraph(), made.optimizer.prepare)
    made.optimizer.on_device(True)
    return made


def compare(ours, theirs, steps=STEPS, samples=lambda step: 3):
    """Both take the same steps, with a learning rate of its own each."""
    for step in range(steps):
        ours.learning_rate = theirs.learning_rate = 0.5 ** (step + 2)
        data = batch(step, samples(step))
        assert torch.equal(ours.step(*data).losses, theirs.step(*data).losses), step
    found, wanted = tensors(ours), tensors(theirs)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)


CASES = [
    (MLAAN(), {}),
    (MLAAN(), {"schedule": "full"}),
    (MLAAN(preset="light"), {"recompute": "fused"}),
    (MLAAN(preset="fast"), {"schedule": "full", "recompute": "each"}),
    (DGL(), {"optim": AdamWConfig(learning_rate=0.5, clip="module")}),
    (DGL(), {"optim": SGDConfig(clip="global", clip_norm=0.01)}),
    (EndToEnd(), {"schedule": "full", "recompute": "once"}),
]


@pytest.mark.parametrize(("method", "named"), CASES, ids=repr)
def test_replays_are_the_eager_steps_from_the_first_on(method, named):
    named = {"learning_rate": 0.5} | named if "optim" not in named else named
    ours, theirs = (made(method, **named) for _ in range(2))
    captured(ours)
    compare(ours, theirs)
    assert ours.executor.captured is not None


def made(method, **named):
    torch.manual_seed(0)
    return Engine(CifarResNet(14).double(), method, 4, input_shape=(3, 8, 8), **named)


def test_a_step_of_several_lanes_is_captured_too():
    ours, theirs = engine(MLAAN(), schedule="full"), engine(MLAAN(), schedule="full")
    lanes = RecordingLanes(3)
    captured(ours, lanes)
    data = batch(0)
    assert torch.equal(ours.step(*data).losses, theirs.step(*data).losses)
    with lanes:
        data = batch(1)
        assert torch.equal(ours.step(*data).losses, theirs.step(*data).losses)
    lanes.check()
    assert lanes.overlaps
    compare(ours, theirs, steps=2)


def test_a_last_partial_batch_runs_outside_and_a_new_size_is_captured_again():
    ours, theirs = (made(MLAAN(preset="light"), learning_rate=0.5) for _ in range(2))
    captured(ours)
    shapes = [3, 3, 3, 2, 3, 4, 4, 4]
    seen = []
    run = RecordingGraph.capture

    class Counting(RecordingGraph):
        def capture(self, work):
            seen.append(1)
            return run(self, work)

    ours.executor.graphs = Counting()
    compare(ours, theirs, len(shapes), lambda step: shapes[step])
    assert len(seen) == 2
    assert tuple(ours.executor.captured.images.shape) == (4, 3, 8, 8)


def test_gradients_without_update_leave_the_graph_alone():
    ours = captured(made(MLAAN(preset="light")))
    for step in range(3):
        ours.step(*batch(step))
    graph = ours.executor.captured
    before = tensors(ours)["backbone", "fc.weight"].clone()
    ours.gradients(*batch(3))
    assert torch.equal(tensors(ours)["backbone", "fc.weight"], before)
    assert ours.executor.captured is graph


def test_gradients_that_are_there_already_are_added_to():
    """A step that finds gradients runs outside; the next one is a replay again."""
    ours, theirs = (made(MLAAN(preset="light"), learning_rate=0.5) for _ in range(2))
    captured(ours)
    for step in range(7):
        data = batch(step)
        if step in (1, 4):  # before the capture, and between replays
            for one in (ours, theirs):
                one.gradients(*batch(step + 20))
        assert torch.equal(ours.step(*data).losses, theirs.step(*data).losses), step
    found, wanted = tensors(ours), tensors(theirs)
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)
    assert ours.executor.captured is not None


def test_results_outlive_the_next_replay():
    ours = captured(made(MLAAN(preset="light")))
    results = [ours.step(*batch(step)) for step in range(4)]
    kept = [(result.losses.clone(), result.correct.clone()) for result in results]
    ours.step(*batch(9))
    for result, (losses, correct) in zip(results, kept, strict=True):
        assert torch.equal(result.losses, losses)
        assert torch.equal(result.correct, correct)
    assert not torch.equal(results[2].losses, results[3].losses)


def test_memory_that_does_not_do_for_a_graph_is_told_and_steps_go_on():
    ours = captured(made(MLAAN(preset="light")))

    class Full(RecordingGraph):
        def capture(self, work):
            raise StepMemoryError("Forward(2)", 2)

    ours.executor.graphs = Full()
    ours.step(*batch(0))
    with pytest.warns(RuntimeWarning, match="task by task.*the memory does not do in Forward"):
        ours.step(*batch(1))
    assert torch.isfinite(ours.step(*batch(2)).losses).all()


def test_float32_weights_move_alike_by_any_learning_rate():
    """The rate on the device is a float32; the eager executor rounds its own so, too."""
    torch.manual_seed(0)
    pair = []
    for _ in range(2):
        torch.manual_seed(0)
        pair.append(Engine(CifarResNet(8), DGL(), 3, input_shape=(3, 8, 8), optim=AdamWConfig(learning_rate=1e-3)))
    ours, theirs = captured(pair[0]), pair[1]
    for step in range(4):
        ours.learning_rate = theirs.learning_rate = 0.1 / (step + 3)
        images, labels = batch(step)
        assert torch.equal(ours.step(images.float(), labels).losses, theirs.step(images.float(), labels).losses)
    found, wanted = tensors(ours), tensors(theirs)
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)


def test_an_engine_for_a_gpu_reads_its_rate_from_the_device(monkeypatch):
    """With CUDA's lanes and graphs faked, the engine puts the same executor together as by hand."""
    monkeypatch.setattr(executors, "CudaGraphs", lambda device: RecordingGraph())
    monkeypatch.setattr(executors, "CudaLanes", lambda device, urgent: RecordingLanes(len(urgent)))
    make = executors.make_executor

    def as_on_a_gpu(wanted, device, *others, **parts):
        return make(wanted, torch.device("cuda", 0), *others, **parts)

    theirs = made(MLAAN(preset="light"), learning_rate=0.5)
    monkeypatch.setattr(mlaan.engine, "make_executor", as_on_a_gpu)
    ours = made(MLAAN(preset="light"), learning_rate=0.5, executor="graph")
    compare(ours, theirs)
    assert isinstance(ours.executor, GraphExecutor)
    assert ours.executor.captured is not None


def test_a_state_loaded_between_replays_is_gone_on_from():
    ours, theirs, other = (made(MLAAN(), learning_rate=0.5) for _ in range(3))
    captured(ours)
    other.step(*batch(9))
    state = other.state_dict()
    for one in (ours, theirs):
        for step in range(3):
            one.step(*batch(step))
    for one in (ours, theirs):
        one.load_state_dict(state)
    compare(ours, theirs, 3)


class Drops(torch.nn.Module):
    """A block that draws random numbers."""

    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, x):
        return torch.nn.functional.dropout(self.block(x), 0.5)


def test_random_numbers_in_a_rebuild_are_told_and_not_captured():
    torch.manual_seed(0)
    net = CifarResNet(14).double()
    net.layer2[1] = Drops(net.layer2[1])
    ours = Engine(net, "end_to_end", 4, input_shape=(3, 8, 8), schedule="full", recompute="once")
    captured(ours)
    ours.step(*batch(0))
    with pytest.warns(RuntimeWarning, match=r"not as one CUDA graph.*: module \d draws random numbers and is rebuilt"):
        ours.step(*batch(1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours.step(*batch(2))
    assert ours.executor.captured is None


def test_what_cannot_be_captured_is_told_once_and_runs_task_by_task():
    ours, theirs = (made(DGL(), learning_rate=0.5) for _ in range(2))
    for one in (ours, theirs):
        next(m for m in one.backbone.net.modules() if isinstance(m, torch.nn.BatchNorm2d)).momentum = None
    captured(ours)
    with pytest.warns(RuntimeWarning, match="task by task.*operation not permitted when stream is capturing"):
        compare(ours, theirs)
    assert all(weight.grad is None for weight in ours.backbone.net.parameters())


def test_planted_bugs_are_seen(monkeypatch):
    """One more step before the capture, whose effects stay; a learning rate from Python; momenta made inside."""
    capture = GraphExecutor._capture

    def eager_warmup(self, images, labels):
        self.inner.run(images, labels)
        return capture(self, images, labels)

    with monkeypatch.context() as planted:
        planted.setattr(GraphExecutor, "_capture", eager_warmup)
        with pytest.raises(AssertionError):
            compare(captured(made(MLAAN())), made(MLAAN()))
    ours = captured(made(MLAAN()))
    ours.optimizer.on_device(False)
    with pytest.raises(AssertionError):
        compare(ours, made(MLAAN()))
