"""The instruments: percentiles, paired ratios, interleaving, the walk through memory events, FLOPs."""

import itertools

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mlaan.compare import measure
from mlaan.compare.measure import (
    MemoryEvent,
    flops,
    highest_level,
    in_rounds,
    interleaved,
    paired_ratios,
    peak_memory,
    percentiles,
)

CPU = torch.device("cpu")
MIB = 2**20


def test_percentiles_are_linear_between_sorted_values():
    assert percentiles([11, 3, 1, 7, 5, 9]) == pytest.approx((3, 6, 9))
    assert percentiles([4.0]) == (4, 4, 4)
    with pytest.raises(ValueError, match="no rounds"):
        percentiles([])


def test_ratios_pair_what_ran_in_one_round():
    # the second round was three times as slow for both: no ratio shows it
    assert paired_ratios([2, 6, 4], [4, 12, 4]) == (0.5, 0.5, 1)
    with pytest.raises(ValueError, match="zip"):
        paired_ratios([1, 2], [1])
    with pytest.raises(ValueError, match="no rounds"):
        paired_ratios([], [])


def test_rounds_rotate_order_and_batches_and_drop_the_warmup():
    log = []
    batches = [(torch.tensor(number), torch.tensor(0)) for number in range(2)]
    steps = {name: lambda images, _, name=name: log.append((name, int(images))) for name in "abc"}
    seconds = interleaved(steps, batches, rounds=3, warmup=1)
    assert {name: len(taken) for name, taken in seconds.items()} == {"a": 3, "b": 3, "c": 3}
    assert "".join(name for name, _ in log) == "abc" + "bca" + "cab" + "abc"
    assert [batch for _, batch in log] == [0, 0, 0, 1, 1, 1, 0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize(
    ("events", "peak"),
    [
        ([], 0),
        ([(0, 5), (1, 3), (2, -5), (3, 4)], 8),
        ([(3, 4), (0, 5), (2, -5), (1, 3)], 8),  # recorded out of order
        ([(0, -10), (1, 4)], 0),  # what was there before was let go: never above the start
        ([(0, -10), (1, 14), (2, -14)], 4),
        ([(0, 6), (1, -6), (1, 6)], 6),  # at one instant: as recorded
    ],
)
def test_memory_walk(events, peak):
    assert highest_level(MemoryEvent(*event) for event in events) == peak


def test_peak_of_known_allocations():
    def run():
        big = torch.empty(16 * MIB, dtype=torch.uint8)
        small = torch.empty(2 * MIB, dtype=torch.uint8)
        del big, small
        torch.empty(17 * MIB, dtype=torch.uint8)

    before = torch.empty(4 * MIB, dtype=torch.uint8)
    assert peak_memory(run, CPU) == 18 * MIB
    assert peak_memory(lambda: before.add_(1), CPU) < MIB


def test_flops_are_torchs_own():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 6 * 6, 5))
    images = torch.randn(2, 3, 8, 8)

    def run():
        net(images).sum().backward()

    with FlopCounterMode(display=False) as counter:
        run()
    assert flops(run) == counter.get_total_flops() > 0
    assert flops(lambda: torch.ones(3, 4) @ torch.ones(4, 5)) == 2 * 3 * 4 * 5


def test_flops_of_a_pass_for_the_input_alone():
    layer, x = nn.Linear(4, 5), torch.randn(3, 4, requires_grad=True)
    y = layer(x).sum()
    assert flops(lambda: torch.autograd.grad(y, [x])) == 2 * 3 * 4 * 5


def test_a_turn_may_take_several_steps_and_a_check_ends_the_rounds():
    log = []
    steps = {name: lambda images, _, name=name: log.append(name) for name in "ab"}
    batches = [(torch.tensor(0), torch.tensor(0))]
    assert [sorted(seconds) for seconds in in_rounds(steps, batches, 2, 0, repeats=3)] == [["a", "b"]] * 2
    assert "".join(log) == "aaabbb" + "bbbaaa"

    def check():
        if len(log) == 15:
            raise KeyboardInterrupt

    found = in_rounds(steps, batches, 2, 0, repeats=1, between=check)
    assert sorted(next(found)) == ["a", "b"]
    with pytest.raises(KeyboardInterrupt):
        next(found)


def test_a_turns_seconds_are_those_of_one_step(monkeypatch):
    clock = itertools.count(0.0, 6.0)
    monkeypatch.setattr(measure.time, "perf_counter", lambda: next(clock))
    batches = [(torch.tensor(0), torch.tensor(0))]
    assert list(in_rounds({"a": lambda *_: None}, batches, 1, 0, repeats=3)) == [{"a": 2.0}]
