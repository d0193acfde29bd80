"""The nearest settings that take less memory."""

from collections.abc import Iterator
from dataclasses import replace

from mlaan.errors import UserError
from mlaan.plan.candidates import Bench, Choice, Estimate
from mlaan.plan.search import RECOMPUTE, largest_batch, module_counts, next_batch


def nearest_change(bench: Bench, choice: Choice, budget: int) -> Estimate | None:
    """The first that fits of: other recomputation, schedule lean, more modules, a smaller batch; None if none does.

    Each step goes on from the last: more modules come with the recomputation that they need.
    """
    least: Estimate | None = None
    for near in _nearby(bench, choice):
        try:
            one = bench.estimate(near, exact=True)
        except UserError:  # the network or the method does not take it
            continue
        if one.peak_bytes <= budget:
            return one
        if least is None or one.peak_bytes < least.peak_bytes:
            least = one
    starts = [choice, *([least.choice] if least else [])]
    for start in starts:
        batch = largest_batch(bench, start, budget)
        while batch:
            one = bench.estimate(replace(start, batch=batch), exact=True)
            if one.peak_bytes <= budget:
                return one
            batch = next_batch(batch)
    return None


def words(before: Choice, after: Choice) -> str:
    """What to add to a command line, to come from one choice to the other."""
    pairs = {
        "partition.modules": (before.modules, after.modules),
        "partition.cuts": (before.cuts, after.cuts),
        "memory.schedule": (before.schedule, after.schedule),
        "memory.window": (before.window, after.window),
        "memory.recompute": (before.recompute, after.recompute),
        "data.batch": (before.batch, after.batch),
    }
    return " ".join(f"--{key} {new}" for key, (old, new) in pairs.items() if old != new)


def _nearby(bench: Bench, choice: Choice) -> Iterator[Choice]:
    later = RECOMPUTE[RECOMPUTE.index(choice.recompute) + 1 :]
    yield from (replace(choice, recompute=policy) for policy in later)
    lean = replace(choice, schedule="lean", window=0)
    if lean != choice:
        yield from (replace(lean, recompute=policy) for policy in (choice.recompute, *later))
    cuts = "even" if isinstance(choice.cuts, tuple) else choice.cuts
    for modules in module_counts(bench.blocks):
        if modules > choice.modules:
            more = replace(lean, modules=modules, cuts=cuts)
            yield from (replace(more, recompute=policy) for policy in (choice.recompute, *later))
