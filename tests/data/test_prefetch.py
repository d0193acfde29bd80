"""Batches made ready beside the step: in which order things are asked of the device, told by fakes of it."""

from contextlib import contextmanager

import pytest
import torch

from mlaan.data.dataset import Batch
from mlaan.data.prefetch import SideStream, ahead
from mlaan.errors import UserError


class FakeCuda:
    """Streams, events and tensors that note what is asked of them, and which stream is the present one."""

    def __init__(self):
        self.log = []
        self.present = [FakeStream(self, "step")]

    def stream_on(self, device):
        return FakeStream(self, "side")

    @contextmanager
    def on(self, stream):
        self.present.append(stream)
        yield
        self.present.pop()

    def event(self):
        return FakeEvent(self)


class FakeStream:
    device = torch.device("cpu")

    def __init__(self, cuda, name):
        self.cuda, self.name = cuda, name

    def wait_stream(self, other):
        self.cuda.log.append(f"{self.name} waits for {other.name}")

    def wait_event(self, event):
        self.cuda.log.append(f"{self.name} waits for {event.what}")


class FakeEvent:
    def __init__(self, cuda):
        self.cuda, self.what = cuda, None

    def record(self, stream):
        self.what = self.cuda.log[-1]


class FakeTensor:
    def __init__(self, cuda, name):
        self.cuda, self.name = cuda, name

    def record_stream(self, stream):
        self.cuda.log.append(f"{self.name} is kept for {stream.name}")


@pytest.fixture
def cuda(monkeypatch):
    fake = FakeCuda()
    for name, value in {
        "Stream": fake.stream_on,
        "Event": fake.event,
        "stream": fake.on,
        "current_stream": lambda device: fake.present[-1],
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    return fake


def run(cuda, count):
    """What is asked of the device over some batches, each followed by its step."""

    def prepare(number):
        cuda.log.append(f"{cuda.present[-1].name} makes {number}")
        return Batch(*(FakeTensor(cuda, f"{name} {number}") for name in ("images", "labels")))

    given = 0
    for batch in ahead(iter(range(count)), prepare, SideStream(torch.device("cpu"))):
        assert batch.images.name == f"images {given}"
        cuda.log.append(f"step {given}")
        given += 1
    assert given == count
    return cuda.log


def test_the_next_batch_is_begun_before_the_step_of_this_one(cuda):
    log = run(cuda, 4)
    made = [f"side makes {number}" for number in range(4)]
    steps = [f"step {number}" for number in range(4)]
    order = [line for line in log if line in made + steps]
    assert order == [
        "side makes 0",
        "side makes 1",
        "step 0",
        "side makes 2",
        "step 1",
        "side makes 3",
        "step 2",
        "step 3",
    ]


def test_what_is_made_waits_for_no_step(cuda):
    log = run(cuda, 4)
    assert log[0] == "side waits for step", "once, for what is made before: mean and deviation"
    assert not any(line.startswith("side waits") for line in log[1:])


def test_each_step_waits_for_its_own_batch_and_keeps_its_memory(cuda):
    log = run(cuda, 4)
    for number in range(4):
        step = log.index(f"step {number}")
        before = log[:step]
        assert f"step waits for side makes {number}" in before
        taken = before.index(f"step waits for side makes {number}")
        assert {f"images {number} is kept for step", f"labels {number} is kept for step"} <= {*before[taken:]}
        assert not any(f"waits for side makes {later}" in line for line in before for later in range(number + 1, 4))


def test_a_batch_that_is_left_out_stays_so_in_its_place(cuda):
    side = SideStream(torch.device("cpu"))
    items = [0, None, 1, None, None, 2]
    given = list(ahead(items, lambda item: Batch(FakeTensor(cuda, item), FakeTensor(cuda, item)), side))
    assert [batch and batch.images.name for batch in given] == items
    assert list(ahead(items, lambda item: item, None)) == items


@pytest.mark.parametrize("beside", [True, False])
@pytest.mark.parametrize("count", [0, 1, 3])
@pytest.mark.parametrize("fault", ["read", "prepared"])
def test_an_error_arrives_as_itself_after_all_batches_before_it(cuda, beside, count, fault):
    error = UserError("data.root is gone")

    def items():
        yield from range(count)
        if fault == "read":
            raise error
        yield count

    def prepare(number):
        if number == count:
            raise error
        return Batch(FakeTensor(cuda, number), FakeTensor(cuda, number))

    batches = ahead(items(), prepare, SideStream(torch.device("cpu")) if beside else None)
    assert [next(batches).images.name for _ in range(count)] == [*range(count)]
    with pytest.raises(UserError) as caught:
        next(batches)
    assert caught.value is error


def test_without_a_side_nothing_is_read_ahead():
    asked = []

    def items():
        for number in range(3):
            asked.append(number)
            yield number

    batches = ahead(items(), lambda item: Batch(torch.tensor(item), torch.tensor(item)), None)
    assert next(batches).images == 0
    assert asked == [0]


@pytest.mark.gpu
def test_a_slow_step_sees_whole_batches():
    """The step writes into what it was given long after the next batch was begun."""
    device = torch.device("cuda")
    host = [torch.full((1 << 22,), float(number)).pin_memory() for number in range(6)]
    seen = []

    def prepare(tensor):
        on_device = tensor.to(device, non_blocking=True)
        return Batch(on_device + 1, on_device)

    for batch in ahead(host, prepare, SideStream(device)):
        torch.cuda._sleep(20_000_000)
        batch.images.mul_(2)
        seen.append(batch.images.aminmax())
    assert [(float(low), float(high)) for low, high in seen] == [(2.0 * (n + 1),) * 2 for n in range(6)]
