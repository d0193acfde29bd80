"""Time and peak memory of every variant's training step, beside plain end-to-end, in one process."""

import copy
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from benchmarks.contenders import LEARNING_RATE, EndToEnd, step_peak
from benchmarks.machine import facts
from benchmarks.measure import interleaved, paired_ratios
from benchmarks.study.results import Measured, Results
from mlaan import Engine
from mlaan.build import build
from mlaan.config import Config, MemoryConfig, PartitionConfig

BATCHES, WARMUP = 4, 2

_PLAIN = "plain end-to-end"
_CHECKPOINTED = "checkpointed"


class _Plain(EndToEnd):
    """A plain PyTorch step in the arithmetic and layout that the variants have."""

    def __init__(self, engine: Engine, *, channels_last: bool) -> None:
        super().__init__(copy.deepcopy(engine.backbone))
        self.autocast = engine.autocast
        self.layout = torch.channels_last if channels_last else torch.contiguous_format

    def step(self, images: Tensor, labels: Tensor) -> Tensor:
        with self.autocast():
            return super().step(images.contiguous(memory_format=self.layout), labels)


def measure(
    results: Results, configs: Mapping[str, Config], rounds: int, commit: str | None, say: Callable[[str], None]
) -> Results:
    """Results with every cost measured anew: each variant's step on real batches, interleaved round by round.

    Plain end-to-end is torch's own way: one forward, one backward, fused SGD. For its peak each weight moves within the
    backward, so that it holds no more gradients than it must.

    Args:
        configs: by `Variant.cost`.
        commit: recorded where the sources are a copy without their repository.
    """
    wanted = dict(configs)
    base = wanted[results.reference.cost]
    wanted[_CHECKPOINTED] = replace(
        base,
        partition=PartitionConfig(modules=results.segments, cuts="even"),
        memory=MemoryConfig(schedule="full", recompute="once"),
    )
    steps: dict[str, Any] = {}
    for key, config in wanted.items():
        steps[key] = build(config).engine
        steps[key].learning_rate = LEARNING_RATE
    parts = build(base)
    device = parts.engine.device
    steps[_PLAIN] = _Plain(parts.engine, channels_last=base.train.channels_last)
    batches = [(images, labels) for images, labels in islice(parts.train_batches, BATCHES)]
    labels = {variant.cost: variant.label for variant in reversed(results.variants)}
    peaks = {}
    for key, contender in steps.items():
        contender.step(*batches[0])  # momenta are there before a peak is taken
        peaks[key] = step_peak(contender, batches[0])
        say(f"peak {peaks[key] / 2**20:8.1f} MiB  {labels.get(key, key)}")
    load = os.getloadavg()[0]
    times = interleaved({key: contender.step for key, contender in steps.items()}, batches, rounds, WARMUP)
    found = {}
    for key, seconds in times.items():
        ratio = paired_ratios(seconds, times[_PLAIN])
        ordered = sorted(1e3 * value for value in seconds)
        ms = (ordered[0], ordered[len(ordered) // 2], ordered[-1])
        found[key] = Measured(ms, (ratio.low, ratio.median, ratio.high), peaks[key], peaks[key] / peaks[_PLAIN])
    machine = facts(device, commit)
    images = batches[0][0]
    where = (
        f"{machine['device']}, {machine['threads']} threads, torch {machine['torch']}, commit {machine['commit']}, "
        f"batch {len(images)}, {base.train.precision}, {rounds} rounds, load {load:.1f} on {os.cpu_count()} cores"
    )
    return replace(
        results,
        measured_on=where,
        costs={key: replace(cost, measured=found[key]) for key, cost in results.costs.items()},
        checkpointed=replace(results.checkpointed, measured=found[_CHECKPOINTED]),
    )
