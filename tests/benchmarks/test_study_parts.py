"""The study's arithmetic, tables and marked blocks, on figures made up by hand."""

import math
from dataclasses import replace

import pytest
from benchmarks.study import page, plots, tables
from benchmarks.study.results import Cost, DepthProbe, Measured, Results, Variant, load, ordered, save
from benchmarks.study.statistics import at_equal_flops, paired

from mlaan.errors import UserError

MEASURED = Measured((9.0, 10.0, 12.0), (0.9, 1.0, 1.25), 5 * 2**20, 0.5)
COSTS = {
    "e": Cost(10**9, 1.0, 270_000, 0, 8 * 2**20, 1.0),
    "d": Cost(2 * 10**9, 2.0, 500_000, 20_000, 4 * 2**20, 0.5, MEASURED),
}


def variant(stem: str, epochs: int, *top1: float, group: str = "ablation", cost: str = "e", **more) -> Variant:
    seeds = {str(seed): value for seed, value in enumerate(top1)}
    label = f"{stem} by name" + more.pop("suffix", "")
    return Variant(stem, label, group, cost == "e", epochs, 1000 * epochs, seeds, cost, **more)


PROBE = DepthProbe(("1.0-1.0", "1.1-2.0"), (0.5, 0.75), (0.9, 0.25), 2)
RESULTS = Results(
    {"network": "resnet20"},
    "",
    ordered(
        [
            variant("fast", 5, 0.90, 0.93, 0.92, cost="d", suffix=" (ours)", probe=PROBE),
            variant("dgl", 5, 0.81, 0.80, 0.82, cost="d", group="methods"),
            variant("end_to_end_20", 20, 0.94, 0.94, 0.94),
            variant("end_to_end", 5, 0.88, 0.90, 0.89),
        ],
        COSTS,
    ),
    COSTS,
    3,
    replace(COSTS["e"], flops=13 * 10**8, flops_ratio=1.3),
)


def rows(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line[:1] == "|"]


def test_a_t_interval_over_pairs_of_seeds():
    ours, theirs = {"0": 1.0, "1": 12.0, "2": 103.0}, {"2": 100.0, "0": 0.0, "1": 10.0, "7": 5.0}
    found = paired(ours, theirs)
    assert found is not None
    # differences 1, 2, 3: deviation 1, and 4.3027 is Student's t for two degrees of freedom
    assert found == pytest.approx((2, 2 - 4.3027 / math.sqrt(3), 2 + 4.3027 / math.sqrt(3), 3), rel=1e-4)
    assert not found.is_decided
    clear = paired({"0": 1.0, "1": 1.1}, {"0": 2.0, "1": 2.11})
    assert clear is not None
    assert clear.is_decided
    assert clear.high < 0


def test_a_single_pair_decides_nothing_and_none_is_none():
    single = paired({"0": 5.0}, {"0": 1.0, "1": 2.0})
    assert single is not None
    assert (single.mean, single.pairs, single.is_decided) == (4, 1, False)
    assert paired({"0": 1.0}, {"1": 1.0}) is None


def test_equal_flops_is_linear_in_their_logarithm():
    runs = [(16.0, {"0": 0.9, "1": 0.8}), (1.0, {"0": 0.5, "2": 0.7}), (4.0, {"0": 0.7, "1": 0.6})]
    assert at_equal_flops(2, runs) == pytest.approx({"0": 0.6})
    assert at_equal_flops(8, runs) == pytest.approx({"0": 0.8, "1": 0.7})
    assert at_equal_flops(4, runs) == pytest.approx({"0": 0.7})
    beyond = at_equal_flops(17, runs)
    assert beyond == pytest.approx({"0": 0.9 + 0.1 * math.log2(17 / 16), "1": 0.8 + 0.1 * math.log2(17 / 16)})
    assert at_equal_flops(18, runs) is None
    assert at_equal_flops(0.9, runs) is None
    assert at_equal_flops(2, []) is None
    assert at_equal_flops(1.05, [(1.0, {"0": 0.5})]) == {"0": 0.5}


def test_the_front_is_what_nothing_beats_for_less():
    points = [(3.0, 0.8), (1.0, 0.5), (2.0, 0.5), (3.0, 0.9), (4.0, 0.85), (1.0, 0.4)]
    assert plots.front(points) == [(1.0, 0.5), (3.0, 0.9)]


def test_results_are_read_as_they_were_written(tmp_path):
    save(RESULTS, tmp_path / "below" / "results.json")
    assert load(tmp_path / "below" / "results.json") == RESULTS
    with pytest.raises(UserError, match="give the folder of the study's runs"):
        load(tmp_path / "results.json")


def test_the_table_of_accuracy():
    found = tables.blocks(RESULTS)
    assert [row[1] for row in rows(found["ablation"])[2:]] == [
        "end_to_end by name",
        "end_to_end_20 by name",
        "fast by name (ours)",
    ]
    assert [row[0] for row in rows(found["methods"])[2:]] == ["1", "2", "4"]
    fast = rows(found["ablation"])[4]
    assert fast[2:4] == ["5", "91.67 ± 1.53 (3)"]
    # end-to-end's 5 and 20 epochs are 5 and 20 TFLOP; at 10 TFLOP it is halfway in the logarithm: 91, 92, 91.5;
    # differences -1, 1, 0.5: deviation 1.041
    assert fast[4] == "+2.67 [+1.23, +4.10]"
    assert fast[5] == "+0.17 [-2.42, +2.75] undecided"
    assert fast[6:] == ["2.00", "10.0", "0.50"]
    assert rows(found["ablation"])[2][4:6] == ["", ""]


def test_lengths_without_an_equal_are_compared_to_none():
    odd, far = variant("odd", 6, 0.9, cost="d"), variant("far", 12, 0.9, cost="d")
    table = tables.accuracy(replace(RESULTS, variants=(*RESULTS.variants, odd, far)), [odd, far])
    # 12 and 24 TFLOP, where end-to-end has 5 and 20
    assert [bool(cell) for row in rows(table)[2:] for cell in row[4:6]] == [False, True, False, False]


def test_costs_stand_once_for_all_lengths_and_measured_figures_only_where_there_are():
    found = rows(tables.costs(RESULTS))[2:]
    assert [row[0] for row in found] == [
        "end_to_end by name",
        "end-to-end, 3 checkpointed segments",
        "fast by name (ours)",
    ]
    assert found[0][1:] == ["1.00", "1.00", "0.27", "0.00", "8.0", "1.00", "", "", "", ""]
    assert found[2][1:] == ["2.00", "2.00", "0.50", "0.02", "4.0", "0.50", "5.0", "0.50", "10", "1.00 (0.90 to 1.25)"]


def test_every_two_variants_are_compared():
    matrix = rows(tables.pairs(RESULTS))
    assert matrix[0][2:] == ["1", "2", "3", "4"]
    assert [row[2:] for row in matrix[2:]] == [
        ["", "-", "-", "+"],
        ["+", "", "u", "+"],
        ["+", "u", "", "+"],
        ["-", "-", "-", ""],
    ]
    lines = rows(tables.all_pairs(RESULTS))[2:]
    assert len(lines) == 6
    assert lines[1] == ["1 end_to_end by name", "3 fast by name (ours)", "-2.67 [-4.10, -1.23]"]
    single = replace(RESULTS, variants=tuple(replace(v, top1={"0": 0.5}) for v in RESULTS.variants))
    assert rows(tables.pairs(single))[2][2:] == ["", "1", "1", "1"]


def test_probes_by_depth():
    found = tables.blocks(RESULTS)
    assert rows(found["probe"])[0] == ["#", "variant", "1.0", "1.1-2.0", "n"]
    assert rows(found["probe"])[2:] == [["3", "fast by name (ours)", "50.0", "75.0", "2"]]
    assert rows(found["cka"])[2:] == [["3", "fast by name (ours)", "0.90", "0.25", "2"]]
    elsewhere = replace(PROBE, blocks=("1.0-2.0",), top1=(0.5,), cka=None)
    mixed = tuple(replace(v, probe=elsewhere) if v.stem == "dgl" else v for v in RESULTS.variants)
    assert "different depths" in tables.probe(replace(RESULTS, variants=mixed))
    bare = replace(RESULTS, variants=tuple(replace(v, probe=None) for v in RESULTS.variants))
    assert "probe" not in tables.blocks(bare)


PAGE = "# Study\n\nWords.\n<!-- study:a -->\nold\n<!-- /study -->\nMore.\n<!-- study:b-2 -->\n<!-- /study -->\nEnd.\n"


def test_blocks_are_rewritten_in_place_and_nothing_else(tmp_path):
    (tmp_path / "page.md").write_text(PAGE)
    assert page.rewrite(tmp_path / "page.md", {"a": "new \\1", "b-2": "| x |", "c": "unused"}) == ["c"]
    text = (tmp_path / "page.md").read_text()
    assert text == PAGE.replace("old", "\nnew \\1\n").replace("b-2 -->\n", "b-2 -->\n\n| x |\n\n")
    assert page.rewritten(text, {"a": "new \\1", "b-2": "| x |"}, "page") == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!-- study:z -->\n<!-- /study -->", "study:z: there are a, b-2"),
        ("<!-- study:a -->\nopen", "must have a line <!-- /study -->"),
        ("<!-- study:a -->\nopen\n<!-- study:b-2 -->\n<!-- /study -->", "must have a line"),
        ("<!-- /study -->", "must have a line"),
    ],
)
def test_markers_that_do_not_fit_are_refused(text, message):
    with pytest.raises(UserError, match=message):
        page.rewritten(text, {"a": "", "b-2": ""}, "page")


def test_nothing_is_on_the_front_that_a_checkpointed_rival_beats(monkeypatch):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    fronts, front = [], plots.front
    monkeypatch.setattr(plots, "front", lambda points: fronts.append(front(points)) or fronts[-1])
    plots._by_memory(RESULTS)
    assert (8.0, 94.0) in fronts[0]
    less = replace(RESULTS, checkpointed=replace(RESULTS.checkpointed, predicted_bytes=3 * 2**20))
    plots._by_memory(less)
    assert fronts[1] == [(3.0, 94.0)]  # with `fast` at 4 MiB and 92 %


def test_the_same_figures_are_drawn_to_the_same_bytes(tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    files = plots.draw(RESULTS, tmp_path)
    assert [file.name for file in files] == ["accuracy_flops.png", "accuracy_memory.png", "probe.png"]
    first = [file.read_bytes() for file in files]
    assert [file.read_bytes() for file in plots.draw(RESULTS, tmp_path)] == first
    better = replace(RESULTS, variants=tuple(replace(v, top1={"0": 0.99}) for v in RESULTS.variants))
    assert next(file.read_bytes() for file in plots.draw(better, tmp_path)) != first[0]
