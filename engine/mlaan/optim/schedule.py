"""The learning rate of each epoch."""

import math

from mlaan.config import OptimConfig

WARMUP_START = 0.01
"""Share of the rate that the first warm-up epoch uses."""


def learning_rate(optim: OptimConfig, epoch: int, epochs: int) -> float:
    """The rate for `epoch`, counting from 0, of `epochs`.

    Cosine: rate · (1 + cos(pi · epoch / epochs)) / 2, which would reach 0 one epoch after the last
    (Loshchilov and Hutter 2017, without restarts). During the first W = `warmup_epochs` this is multiplied by
    epoch / W + 0.01 · (W - epoch) / W, the straight line from 0.01 to 1 of MLAAN's published recipes.
    """
    rate = optim.learning_rate
    if optim.schedule == "cosine":
        rate *= 0.5 * (1 + math.cos(math.pi * epoch / epochs))
    if epoch < optim.warmup_epochs:
        done = epoch / optim.warmup_epochs
        rate *= done + WARMUP_START * (1 - done)
    return rate
