"""The nearest settings that take less memory."""

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import replace

from mlaan.errors import UserError
from mlaan.learning import EndToEnd
from mlaan.plan.candidates import Bench, Choice, Estimate
from mlaan.plan.search import RECOMPUTE, Space, largest_batch, module_counts, next_batch, search


def nearest_change(bench: Bench, choice: Choice, budget: int) -> Estimate | None:
    """The first that fits of: other recomputation, schedule lean, more modules, a smaller batch, any plan at all.

    Each step goes on from the last: more modules come with the recomputation that they need. The smaller batch is the
    largest that fits with any of these; where two take it, the one with less changed.

    Returns:
        What it costs, measured at its own batch; None if nothing fits.
    """
    possible: list[Choice] = [choice]
    for near in _nearby(bench, choice):
        try:
            one = bench.estimate(near, exact=True)
        except UserError:  # the network or the method does not take it
            continue
        if one.peak_bytes <= budget:
            return one
        possible.append(near)
    return _largest_batch_of(bench, possible, budget) or _any(bench, choice.batch, budget)


def _largest_batch_of(bench: Bench, choices: Sequence[Choice], budget: int) -> Estimate | None:
    """Of several choices the one with the largest batch that fits as measured; the first of those with as large a one.

    The choices' own batches are known not to fit.
    """
    batches = [largest_batch(bench, choice, budget) for choice in choices]
    batches = [
        batch if batch < choice.batch else next_batch(batch) for batch, choice in zip(batches, choices, strict=True)
    ]
    while batch := max(batches):
        first = batches.index(batch)
        one = bench.estimate(replace(choices[first], batch=batch), exact=True)
        if one.peak_bytes <= budget:
            return one
        batches[first] = next_batch(batch)
    return None


def _any(bench: Bench, batch: int, budget: int) -> Estimate | None:
    """The best plan that fits with whatever settings."""
    fewest = 1 if isinstance(bench.subject.method, EndToEnd) else min(2, bench.blocks)
    try:
        return search(bench, Space(module_counts(bench.blocks, fewest), batch=batch), budget, most=1)[0]
    except UserError:
        return None


def words(before: Choice, after: Choice) -> str:
    """What to add to a command line, to come from one choice to the other; quoted for a shell."""
    pairs = {
        "partition.modules": (before.modules, after.modules),
        "partition.cuts": (before.cuts, after.cuts),
        "memory.schedule": (before.schedule, after.schedule),
        "memory.window": (before.window, after.window),
        "memory.recompute": (before.recompute, after.recompute),
        "data.batch": (before.batch, after.batch),
    }
    return " ".join(f"--{key} {_word(new)}" for key, (old, new) in pairs.items() if old != new)


def _word(value: object) -> str:
    return shlex.quote(f"[{','.join(map(str, value))}]" if isinstance(value, tuple) else str(value))


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
