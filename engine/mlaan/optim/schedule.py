"""The learning rate of each epoch."""

import math

from mlaan.config import OptimConfig

WARMUP_START = 0.01
"""Share of the rate that the first warm-up epoch uses."""

RECIPE_START = 0.01
"""Rate of the first warm-up epoch in the schedule "recipe"."""


def learning_rate(optim: OptimConfig, epoch: int, epochs: int) -> float:
    """The rate for `epoch`, counting from 0, of `epochs`.

    Cosine: rate · (1 + cos(pi · epoch / epochs)) / 2, which would reach 0 one epoch after the last
    (Loshchilov and Hutter 2017, without restarts). During the first W = `warmup_epochs` this is multiplied by
    epoch / W + 0.01 · (W - epoch) / W, a straight line from 0.01 to 1.

    Recipe, what the codes of InfoPro, AugLocal, MAN and MLAAN compute for CIFAR-10, SVHN and STL-10: epochs count from
    1, so that the last one's rate is 0, and the warm-up's second term is the rate 0.01 · (W - epoch) / W itself,
    not a share of `learning_rate`.
    """
    rate = optim.learning_rate
    if optim.schedule == "recipe":
        rate *= 0.5 * (1 + math.cos(math.pi * (epoch + 1) / epochs))
        if epoch < optim.warmup_epochs:
            done = epoch / optim.warmup_epochs
            rate = rate * done + RECIPE_START * (1 - done)
        return rate
    if optim.schedule == "cosine":
        rate *= 0.5 * (1 + math.cos(math.pi * epoch / epochs))
    if epoch < optim.warmup_epochs:
        done = epoch / optim.warmup_epochs
        rate *= done + WARMUP_START * (1 - done)
    return rate
