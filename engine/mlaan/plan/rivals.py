"""What end-to-end training would do with the same memory."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from mlaan.plan.candidates import Bench, Choice, Estimate
from mlaan.plan.search import largest_batch, module_counts


@dataclass(frozen=True)
class Rival:
    """End-to-end training under the same budget.

    Attributes:
        name: in words.
        estimate: what it takes; choice.modules are the checkpointed segments.
    """

    name: str
    estimate: Estimate


def rivals(bench: Bench, batch: int, budget: int) -> list[Rival]:
    """End-to-end training by the same kernels, with the largest batch that fits where not all does; and checkpointed.

    That one has the segment count of its lowest peak.
    """
    same = bench.end_to_end()
    whole = Choice(1, "even", "full", 0, "none", batch)
    found = [Rival("end-to-end", same.estimate(whole, exact=True))]
    if bench.subject.kernels == "triton":
        whole = replace(whole, recompute="fused")
        found.append(Rival("end-to-end, recompute fused", same.estimate(whole, exact=True)))
    if all(rival.estimate.peak_bytes > budget for rival in found):
        most = largest_batch(same, whole, budget)
        if most:
            name = f"{found[-1].name}, largest batch"
            found.append(Rival(name, same.estimate(replace(whole, batch=most))))

    def segments(counts: Iterable[int]) -> Estimate:
        tried = (replace(whole, modules=k, recompute="once") for k in counts)
        return min((same.estimate(one, exact=True) for one in tried), key=lambda one: one.peak_bytes)

    counts = module_counts(bench.blocks, least=1)
    around = counts.index(segments(counts).choice.modules)
    best = segments(range(counts[max(0, around - 1)], counts[min(len(counts) - 1, around + 1)] + 1))
    name = f"end-to-end, {best.choice.modules} checkpointed segments"
    found.append(Rival(name, best))
    if best.peak_bytes > budget:
        most = largest_batch(same, best.choice, budget)
        if most:
            found.append(Rival(f"{name}, largest batch", same.estimate(replace(best.choice, batch=most))))
    return found
