"""The study's tables, as Markdown."""

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from statistics import mean, stdev

from benchmarks.study.results import Cost, Results, Variant, depth_name
from benchmarks.study.statistics import BEYOND, CONFIDENCE, Interval, at_equal_flops, paired

_CONFIDENCE = f"{100 * CONFIDENCE:.0f} %"


def blocks(results: Results) -> dict[str, str]:
    """Every block by its name on the page: setting, one per group of configs, costs, pairs, probe, cka."""
    groups = dict.fromkeys(variant.group for variant in results.variants if not variant.end_to_end)
    found = {"setting": setting(results)}
    found |= {group: accuracy(results, results.of_group(group)) for group in groups}
    found |= {"costs": costs(results), "pairs": pairs(results)}
    if any(variant.probe for variant in results.variants):
        found |= {"probe": probe(results), "cka": cka(results)}
    return found


def setting(results: Results) -> str:
    """What the runs share, and where figures were taken."""
    facts = [f"{name}: {value}" for name, value in results.setting.items()]
    measured = results.measured_on or "nowhere yet"
    return "\n".join([*(f"- {fact}" for fact in facts), f"- time and peak memory measured on: {measured}"])


def accuracy(results: Results, variants: Sequence[Variant]) -> str:
    """Accuracy, and what end-to-end reaches for as many epochs and as many FLOPs."""
    rows = []
    for variant in variants:
        same_epochs, same_flops = _rivals(results, variant)
        cost = results.costs[variant.cost]
        rows.append(
            [
                str(results.numbers()[variant.stem]),
                variant.label,
                str(variant.epochs),
                _top1(variant.top1),
                _difference(variant.top1, same_epochs),
                _difference(variant.top1, same_flops),
                f"{cost.flops_ratio:.2f}",
                f"{results.total_flops(variant) / 1e12:.1f}",
                f"{cost.trained / 1e6:.2f}",
            ]
        )
    head = ["#", "variant", "epochs", "test top-1 % (n)", "less end-to-end's, equal epochs"]
    head += ["equal FLOPs", "FLOPs of a step", "TFLOP in all", "trained, M"]
    legend = (
        f"\n\nDifferences are in points, with their {_CONFIDENCE} t-interval over the seeds, paired by seed; "
        "undecided: 0 is in it. Equal FLOPs: what end-to-end reaches between its lengths, linear in the logarithm "
        f"of the FLOPs; empty: more than {100 * (BEYOND - 1):.0f} % outside. FLOPs of a step: over end-to-end's."
    )
    return _table(head, rows, left=2) + legend


def costs(results: Results) -> str:
    """What a step costs, once for variants that differ in length alone."""
    first: dict[str, Variant] = {}
    for variant in results.variants:
        first.setdefault(variant.cost, variant)
    rows = [_cost_row(variant.label, results.costs[key]) for key, variant in first.items()]
    rows.insert(1, _cost_row(f"end-to-end, {results.segments} checkpointed segments", results.checkpointed))
    head = [
        "variant",
        "GFLOP",
        "/ end-to-end",
        "trained, M",
        "twins, M",
        "predicted peak, MiB, float32",
        "/ plain",
    ]
    head += ["measured peak, MiB", "/ plain", "ms", "time / plain (least to greatest)"]
    return _table(head, rows, left=1)


def pairs(results: Results) -> str:
    """Row less column for every two variants: +, - or undecided."""
    numbers = results.numbers()
    rows = []
    for row in results.variants:
        signs = [_sign(row, column) for column in results.variants]
        rows.append([str(numbers[row.stem]), row.label, *signs])
    legend = (
        f"\n\n+ the row is better than the column, - worse, u undecided: 0 is in the {_CONFIDENCE} t-interval of "
        "the difference, paired by seed; 1 a single seed in common. Each pair stands for itself: of a hundred pairs "
        "without a difference about five would be decided."
    )
    return _table(["#", "variant", *map(str, numbers.values())], rows, left=2) + legend


def all_pairs(results: Results) -> str:
    """Every two variants in a line of their own, with the interval."""
    numbers = results.numbers()
    rows = []
    for a, b in combinations(results.variants, 2):
        names = [f"{numbers[v.stem]} {v.label}" for v in (a, b)]
        rows.append([*names, _difference(a.top1, b.top1)])
    return _table(["variant", "other", f"difference in points, {_CONFIDENCE} t-interval"], rows, left=2)


def probe(results: Results) -> str:
    """Accuracy of a linear classifier on each module's output."""
    return _by_depth(results, lambda variant: [f"{100 * value:.1f}" for value in variant.probe.top1])  # type: ignore[union-attr]


def cka(results: Results) -> str:
    """Linear CKA to end-to-end's modules at the same depths, for as many epochs."""

    def cells(variant: Variant) -> list[str]:
        assert variant.probe is not None
        return [f"{value:.2f}" for value in variant.probe.cka or ()]

    return _by_depth(results, cells)


def _by_depth(results: Results, cells: Callable[[Variant], list[str]]) -> str:
    probed = [variant for variant in results.variants if variant.probe and cells(variant)]
    rows = [[str(results.numbers()[v.stem]), v.label, *cells(v), str(v.probe.seeds)] for v in probed if v.probe]
    ends = dict.fromkeys(v.probe.blocks for v in probed if v.probe)
    if len(ends) != 1:
        return "Not compared: no runs, or runs probed at different depths."
    return _table(["#", "variant", *map(depth_name, next(iter(ends))), "n"], rows, left=2)


def _rivals(results: Results, variant: Variant) -> tuple[Mapping[str, float] | None, Mapping[str, float] | None]:
    """End-to-end's accuracy by seed for as many epochs, and for as many FLOPs."""
    if variant.end_to_end:
        return None, None
    lengths = [other for other in results.variants if other.end_to_end]
    same = next((other.top1 for other in lengths if other.epochs == variant.epochs), None)
    runs = [(results.total_flops(other), other.top1) for other in lengths]
    return same, at_equal_flops(results.total_flops(variant), runs)


def _cost_row(label: str, cost: Cost) -> list[str]:
    row = [label, f"{cost.flops / 1e9:.2f}", f"{cost.flops_ratio:.2f}", f"{cost.trained / 1e6:.2f}"]
    row += [f"{cost.twins / 1e6:.2f}", _mib(cost.predicted_bytes), f"{cost.predicted_ratio:.2f}"]
    if cost.measured is None:
        return row + [""] * 4
    low, middle, high = cost.measured.time_ratio
    row += [_mib(cost.measured.peak_bytes), f"{cost.measured.peak_ratio:.2f}", f"{cost.measured.ms[1]:.0f}"]
    return [*row, f"{middle:.2f} ({low:.2f} to {high:.2f})"]


def _top1(by_seed: Mapping[str, float]) -> str:
    values = [100 * value for value in by_seed.values()]
    spread = f" ± {stdev(values):.2f}" if len(values) > 1 else ""
    return f"{mean(values):.2f}{spread} ({len(values)})"


def _difference(ours: Mapping[str, float], theirs: Mapping[str, float] | None) -> str:
    found = paired(ours, theirs) if theirs is not None else None
    if found is None:
        return ""
    if found.pairs == 1:
        return f"{100 * found.mean:+.2f} (one seed)"
    text = f"{100 * found.mean:+.2f} [{100 * found.low:+.2f}, {100 * found.high:+.2f}]"
    return text if found.is_decided else f"{text} undecided"


def _sign(row: Variant, column: Variant) -> str:
    if row is column:
        return ""
    found: Interval | None = paired(row.top1, column.top1)
    if found is None:
        return ""
    if found.pairs == 1:
        return "1"
    return ("+" if found.mean > 0 else "-") if found.is_decided else "u"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> str:
    """A Markdown table; all but the first `left` columns to the right."""
    rule = ["---"] * left + ["---:"] * (len(head) - left)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, rule, *rows))


def _mib(size: int) -> str:
    return f"{size / 2**20:.1f}"
