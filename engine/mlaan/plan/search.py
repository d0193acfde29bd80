"""The fastest settings whose step fits into a given memory."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from mlaan.config import gib
from mlaan.errors import UserError
from mlaan.plan.candidates import BALANCED, Bench, Choice, Estimate

RECOMPUTE = ("none", "fused", "once", "each")
_STEP = 8
"""Batches from here on are multiples of it."""
_FEWEST = 2
"""Images in a proposed step: of one, a BatchNorm over maps of one pixel could learn nothing."""
ALIKE = 0.01
"""Share of a speed below which the smaller of two plans is the better one."""
_TIED = 0.001
"""Share of a peak below which the larger of two batches is the better one."""
_LOOKED_AT = 8
"""Plans that are taken further after a first look."""


@dataclass(frozen=True)
class Space:
    """What may be chosen from; one entry where it is given.

    Attributes:
        modules: numbers of modules, rising.
        cuts: rules or first blocks.
        schedules: ("lean", 0), ("windowed", window) or ("full", 0); empty: all of them.
        recompute: policies.
        batch: images to reach in a step.
        batch_fixed: no other number will do.
    """

    modules: Sequence[int]
    cuts: Sequence[str | tuple[int, ...]] = ("even", BALANCED)
    schedules: Sequence[tuple[str, int]] = ()
    recompute: Sequence[str] = RECOMPUTE
    batch: int = 64
    batch_fixed: bool = False


def module_counts(blocks: int, least: int = 2) -> list[int]:
    """Numbers of modules worth trying for so many blocks: closer together where they are few, and every block."""
    counts = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128]
    return [*(k for k in counts if least <= k < blocks), blocks]


def search(bench: Bench, space: Space, budget: int, most: int = 5) -> list[Estimate]:
    """The fastest plans that fit, best first, each different from those before it.

    At `space.batch` images where any fits, else at the most that fit, which is never one; the first is measured at its
    own batch. Speeds that differ by less than a hundredth count as equal: then the smaller plan is better.

    Raises:
        UserError: nothing fits, and it tells the least memory found; or the network or the method takes no choice.
    """
    seen: list[Estimate] = []
    for policies in _policies(bench, space):
        seen += _look(bench, space, policies)
        if _ranked(seen, budget):
            break
    if not seen:  # then the first choice tells why
        bench.estimate(next(_choices(space, space.modules[0], space.recompute)), exact=True)
    looked = [one.choice for one in seen]
    if not space.batch_fixed and not _ranked(seen, budget):
        seen = _with_largest_batches(bench, seen, budget)
    found = _proven(bench, space, seen, budget, most)
    if not found and not space.batch_fixed:
        seen = _with_fewest_images(bench, looked)
        found = _proven(bench, space, seen, budget, most)
    if not found:
        least = _least(bench, space, seen)
        raise UserError(
            f"no plan fits into {gib(budget)}: the least found is {_rounded_up(least.peak_bytes)}, at data.batch = "
            f"{least.choice.batch} with {words_of(least.choice)}: allow that much"
            + (", or set a smaller data.batch" if space.batch_fixed and least.choice.batch > _FEWEST else "")
        )
    return _ranked(found, budget)


def _proven(bench: Bench, space: Space, seen: Sequence[Estimate], budget: int, most: int) -> list[Estimate]:
    """The best plans unlike each other that fit, with other live windows too; the first measured at its own batch."""
    found: list[Estimate] = []
    for one in _ranked(_further(bench, space, seen, budget), budget):
        if any(_alike(one, other) for other in found):
            continue
        chosen = one if found and one.choice.batch < space.batch else _verified(bench, space, one, budget)
        if chosen is not None and not any(_alike(chosen, other) for other in found):
            found.append(chosen)
        if len(found) == most:
            break
    return found


def _policies(bench: Bench, space: Space) -> Iterator[list[str]]:
    """Recomputations to look at, and those for which it takes more measuring and which only serve where nothing fits.

    On fused kernels "none" and "fused" are as fast as each other by the model: `_verified` tries "none" last.
    On PyTorch's own "fused" is slower than "none" for what it saves.
    """
    wanted = list(space.recompute)
    late = "none" if bench.subject.kernels == "triton" else "fused"
    if late not in wanted or len(wanted) == 1:
        yield wanted
        return
    yield [policy for policy in wanted if policy != late]
    if late == "fused":
        yield [late]


def _look(bench: Bench, space: Space, policies: Sequence[str]) -> list[Estimate]:
    """Every cut with every policy, in the schedule that holds the fewest modules.

    More modules are not looked at once they have twice in a row neither freed memory nor time.
    """
    found: list[Estimate] = []
    stale = 0
    for modules in space.modules:
        new = list(_possible(bench, _choices(space, modules, policies), exact=True))
        if found and new:
            smaller = min(one.peak_bytes for one in new) < 0.97 * min(one.peak_bytes for one in found)
            faster = min(one.seconds for one in new) < min(one.seconds for one in found)
            stale = 0 if smaller or faster else stale + 1
        found += new
        if stale == 2:
            break
    return found


def _choices(space: Space, modules: int, policies: Sequence[str]) -> Iterator[Choice]:
    schedule, window = next(iter(space.schedules), ("lean", 0))
    for cuts in space.cuts:
        yield from (Choice(modules, cuts, schedule, window, policy, space.batch) for policy in policies)


def _possible(bench: Bench, choices: Iterable[Choice], *, exact: bool) -> Iterator[Estimate]:
    """Estimates, less those of choices that the network or the method refuses."""
    for choice in choices:
        try:
            yield bench.estimate(choice, exact=exact)
        except UserError:
            continue


def largest_batch(bench: Bench, choice: Choice, budget: int) -> int:
    """The most images, up to the choice's own, with which it fits by interpolation: a multiple of 8 from 8 on, or 0.

    One image is none, unless it is the choice's own batch.

    A peak is the largest of many sums that each grow with the batch in a straight line: between two batches it lies
    below their chord.
    """

    def peak(batch: int) -> int:
        return bench.estimate(replace(choice, batch=batch)).peak_bytes

    if peak(choice.batch) <= budget:
        return choice.batch
    if choice.batch <= _STEP or peak(_STEP) > budget:
        return next((n for n in reversed(range(_FEWEST, min(choice.batch, _STEP))) if peak(n) <= budget), 0)
    low, high = _STEP, choice.batch
    while True:
        at_low, at_high = peak(low), peak(high)
        middle = low + (high - low) * (budget - at_low) / max(1, at_high - at_low)
        batch = max(low, int(middle) // _STEP * _STEP)
        if batch == low:
            batch = low + _STEP
            if batch >= high or peak(batch) > budget:
                return low
        if peak(batch) <= budget:
            low = batch
        else:
            high = batch


def next_batch(batch: int) -> int:
    """The next smaller batch worth trying; 0 where there is none."""
    if batch > _STEP:
        return (batch - 1) // _STEP * _STEP
    return batch - 1 if batch > _FEWEST else 0


def _with_largest_batches(bench: Bench, seen: Sequence[Estimate], budget: int) -> list[Estimate]:
    """The plans that take the most images, at the batches that fit."""
    sketched = []
    for one in seen:
        batch = min(one.choice.batch, _STEP)
        small = bench.estimate(replace(one.choice, batch=batch)).peak_bytes
        slope = (one.peak_bytes - small) / max(1, one.choice.batch - batch)
        sketched.append(((budget - small) / max(1.0, slope), one))
    sketched.sort(key=lambda pair: -pair[0])
    found = []
    for _, one in sketched[: 2 * _LOOKED_AT]:
        batch = largest_batch(bench, one.choice, budget)
        if batch:
            found.append(bench.estimate(replace(one.choice, batch=batch)))
    return found


def _with_fewest_images(bench: Bench, choices: Iterable[Choice]) -> list[Estimate]:
    """The plans at the smallest batch that is proposed, at the larger of their interpolated and measured peaks.

    So an amount of memory that is advised for one of them is enough for it when it is searched again.
    """
    found = []
    for choice in choices:
        few = replace(choice, batch=min(choice.batch, _FEWEST))
        sketch, exact = bench.estimate(few), bench.estimate(few, exact=True)
        found.append(max(sketch, exact, key=lambda one: one.peak_bytes))
    return found


def _least(bench: Bench, space: Space, seen: Sequence[Estimate]) -> Estimate:
    """The plan that needs the least memory; of batches that need about as much, the largest."""
    least = min(seen, key=lambda one: one.peak_bytes)
    if space.batch_fixed:
        return least
    batch = largest_batch(bench, replace(least.choice, batch=space.batch), int(least.peak_bytes * (1 + _TIED)))
    more = bench.estimate(replace(least.choice, batch=max(batch, least.choice.batch)), exact=True)
    return more if more.peak_bytes <= least.peak_bytes * (1 + _TIED) and batch > least.choice.batch else least


def _rounded_up(size: int) -> str:
    """Bytes in `gib`'s words, as an amount that is enough."""
    unit, parts = (2**30, 100) if size >= 2**30 else (2**20, 10)
    return gib(math.ceil(size * parts / unit) * unit / parts)


def _further(bench: Bench, space: Space, seen: Sequence[Estimate], budget: int) -> list[Estimate]:
    """What was seen, and the best of it with other live windows."""
    found = list(seen)
    for one in _ranked(seen, budget)[:_LOOKED_AT]:
        others = (replace(one.choice, schedule=s, window=w) for s, w in _windows(space, one))
        found += _possible(bench, others, exact=one.choice.batch == space.batch)
    return found


def _windows(space: Space, one: Estimate) -> list[tuple[str, int]]:
    """Schedules with more modules alive than a plan has: a few windows between its own and all."""
    if space.schedules:
        return list(space.schedules[1:])
    k, own = one.choice.modules, one.window
    windows = sorted({own, own + 1, own + 2, (own + k) // 2} & set(range(own, k)))
    return [*(("windowed", window) for window in windows), ("full", 0)] if k > own else []


def _verified(bench: Bench, space: Space, one: Estimate, budget: int) -> Estimate | None:
    """The plan as measured at its own batch, or at the next smaller one that fits.

    With nothing rebuilt, where that fits and "fused" would be as fast.
    """
    choice = one.choice
    policies = [choice.recompute]
    if bench.subject.kernels == "triton" and choice.recompute == "fused" and "none" in space.recompute:
        policies.insert(0, "none")
    while choice.batch > 0:
        for policy in policies:
            exact = bench.estimate(replace(choice, recompute=policy), exact=True)
            if exact.peak_bytes <= budget:
                return exact
        if space.batch_fixed:
            break
        choice = replace(choice, batch=next_batch(choice.batch))
    return None


def _ranked(some: Sequence[Estimate], budget: int) -> list[Estimate]:
    """Those that fit, best first."""
    fit = sorted((one for one in some if one.peak_bytes <= budget), key=lambda one: -one.images_per_second)
    fit.sort(key=lambda one: -one.choice.batch)
    ranked: list[Estimate] = []
    while fit:
        first = fit[0]
        equal = [one for one in fit if one.choice.batch == first.choice.batch and _as_fast(one, first)]
        best = min(equal, key=_size)
        ranked.append(best)
        fit.remove(best)
    return ranked


def _size(one: Estimate) -> tuple[int, int, int]:
    """Memory; where that is the same, how little is asked for."""
    return one.peak_bytes, one.choice.modules, ("lean", "windowed", "full").index(one.choice.schedule)


def _as_fast(one: Estimate, other: Estimate) -> bool:
    return abs(one.images_per_second - other.images_per_second) <= ALIKE * other.images_per_second


def _alike(one: Estimate, other: Estimate) -> bool:
    """Whether two plans differ in trifles alone."""
    a, b = one.choice, other.choice
    if (a.modules, a.recompute) != (b.modules, b.recompute) and not _as_fast(one, other):
        return False
    return abs(one.peak_bytes - other.peak_bytes) < 0.1 * other.peak_bytes and (
        abs(one.images_per_second - other.images_per_second) < 0.05 * other.images_per_second
    )


def words_of(choice: Choice) -> str:
    """Modules, schedule and recomputation in words."""
    k = "one module" if choice.modules == 1 else f"{choice.modules} modules"
    schedule = f"a window of {choice.window}" if choice.schedule == "windowed" else f"schedule {choice.schedule}"
    return f"{k}, {schedule}, recompute {choice.recompute}"
