"""One reading of a run."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Snapshot:
    """One reading of a run. Losses and accuracies are means over the present epoch, by the loss's name; a head that
    gives no logits has no accuracy.

    Attributes:
        epoch: the present epoch, from 1.
        batch, batches: steps done in it, of how many.
        seconds, seconds_left: time spent, time expected; `seconds_left` is nan while nothing is known.
        test_loss, test_top1, best_top1: nan before the first test.
        test_top5: nan for five classes or fewer, too.
        test_images: how many the test was of; fewer than all where some could not be read.
        data_wait: the share of the time since the last reading, 0 to 1, that was spent waiting for batches.
        left_out: training images that could not be read, in this process.
        skipped, scale: updates of modules that float16 overflowed in so far, and the least loss scale; None without.
    """

    epoch: int
    epochs: int
    batch: int
    batches: int
    step: int
    seconds: float
    seconds_left: float
    learning_rate: float
    images_per_second: float
    data_wait: float
    left_out: int
    memory_bytes: int
    losses: dict[str, float]
    top1: dict[str, float]
    test_loss: float = math.nan
    test_top1: float = math.nan
    test_top5: float = math.nan
    test_images: int = 0
    best_top1: float = math.nan
    skipped: int | None = None
    scale: float | None = None
