"""Differences between variants, and what three seeds say about them."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import mean, stdev
from typing import NamedTuple

CONFIDENCE = 0.95
BEYOND = 1.1
"""How far, as a factor, the line through end-to-end's lengths is drawn on beyond the shortest and the longest."""


class Interval(NamedTuple):
    """A mean difference and its t-interval; unbounded for a single pair."""

    mean: float
    low: float
    high: float
    pairs: int

    @property
    def is_decided(self) -> bool:
        """0 is not in it."""
        return self.low > 0 or self.high < 0


def paired(ours: Mapping[str, float], theirs: Mapping[str, float]) -> Interval | None:
    """The mean of ours less theirs over the seeds that both have, with its 95 % t-interval; None without any."""
    differences = [ours[seed] - theirs[seed] for seed in ours if seed in theirs]
    if not differences:
        return None
    middle, n = mean(differences), len(differences)
    if n == 1:
        return Interval(middle, -math.inf, math.inf, 1)
    from scipy.stats import t  # comes with scikit-learn

    half = float(t.ppf((1 + CONFIDENCE) / 2, n - 1)) * stdev(differences) / math.sqrt(n)
    return Interval(middle, middle - half, middle + half, n)


def at_equal_flops(total: float, runs: Sequence[tuple[float, Mapping[str, float]]]) -> dict[str, float] | None:
    """What end-to-end reaches with `total` FLOPs, by seed: linear in their logarithm between two lengths of it.

    Args:
        runs: total FLOPs and accuracy by seed of end-to-end's lengths.

    Returns:
        None where `total` is further than BEYOND from the nearest of these lengths, on the outside.
    """
    points = sorted(runs, key=lambda run: run[0])
    if not points or not points[0][0] / BEYOND <= total <= points[-1][0] * BEYOND:
        return None
    if len(points) == 1:
        return dict(points[0][1])
    steps = list(pairwise(points))
    low, high = next((step for step in steps if total <= step[1][0]), steps[-1])
    share = math.log(total / low[0]) / math.log(high[0] / low[0])
    return {seed: (1 - share) * low[1][seed] + share * high[1][seed] for seed in low[1] if seed in high[1]}
