"""The front, the table and the sentences, on made-up figures."""

import pytest

from compare.rows import comparison, row
from mlaan.compare.candidates import Refused
from mlaan.compare.result import as_data, front
from mlaan.compare.words import WARNING, as_text, pace, verdict


def test_the_front_has_what_nothing_beats_in_both():
    lean, slow = row("dgl", 50, 1.2), row("dgl", 50, 1.3, schedule="full")
    small, beaten, large = row("checkpointed", 40, 1.4), row("mlaan light", 60, 1.2), row("mlaan paper", 150, 0.9)
    untimed = row("mlaan light", 10)
    found = comparison(lean, slow, small, beaten, large, untimed)
    assert front(found.rows) == [small, lean, found.rows[0], large]
    flags = {figures["label"]: figures["pareto"] for figures in as_data(found, [])["rows"]}
    assert flags == {
        "end-to-end": True,
        "checkpointed (5 segments)": True,
        "dgl (4 modules, lean)": True,
        "dgl (4 modules, full)": False,
        "mlaan light (4 modules, lean)": False,
        "mlaan paper (4 modules, lean)": True,
    }


def test_paces_differ_only_where_the_spreads_do():
    one, other = row("dgl", 50, 1.1, 1.2, 1.3), row("dgl", 50, 1.25, 1.4, 1.5)
    assert (pace(one, other), pace(one), pace(other)) == ("alike", "slower", "slower")
    assert pace(row("dgl", 50, 0.8, 0.9, 0.95)) == "faster"
    assert pace(row("dgl", 50, 0.8, 0.9, 1.05)) == pace(row("dgl", 50, 0.9, 1.1, 1.2)) == "alike"
    assert pace(row("dgl", 50, 1.0, 1.1, 1.2), other) == "faster"


@pytest.mark.parametrize(
    ("rows", "wanted", "unwanted"),
    [
        (
            [row("checkpointed", 40, 1.33), row("mlaan light", 61, 1.2), row("dgl", 70, 1.1)],
            [
                "mlaan light (4 modules, lean) takes 0.61 of end-to-end's memory at 1.20 times its time",
                "checkpointing (5 segments) 0.40 at 1.33",
                "For memory alone take checkpointing; local learning is faster",
                "dgl (4 modules, lean) takes 0.70 of end-to-end's memory at 1.10 times its time",
            ],
            ["end-to-end itself"],
        ),
        (
            [row("checkpointed", 40, 1.33), row("mlaan light", 61, 1.5)],
            ["Take checkpointing: it is smaller and faster"],
            ["For memory alone"],
        ),
        (
            [row("checkpointed", 40, 1.1, 1.33, 1.4), row("mlaan light", 61, 0.9, 1.0, 1.2)],
            ["do not tell which of the two is faster", "lean) is as fast as end-to-end itself, as far as"],
            ["in every round", "local learning is faster"],
        ),
        (
            [row("checkpointed", 60, 1.33), row("mlaan light", 50, 1.5)],
            ["the smallest here", "but slower than checkpointing"],
            ["ake checkpointing"],
        ),
        (
            [row("checkpointed", 60, 1.33), row("mlaan light", 50, 0.9)],
            ["the smallest here", "and faster than checkpointing", "faster than end-to-end itself in every round"],
            ["ake checkpointing"],
        ),
        (
            [row("checkpointed", 40, 1.33), row("mlaan paper", 120, 4.0)],
            ["No local learner here needs less memory than end-to-end", "0.40 at 1.33"],
            ["local learning is faster"],
        ),
        ([row("checkpointed", 40, 1.33)], ["No local learner was timed"], ["ake checkpointing"]),
        ([row("dgl", 70, 1.1)], ["0.70 of end-to-end's memory at 1.10 times"], ["heckpointing"]),
    ],
    ids=["between", "beaten", "undecided", "smaller", "better", "larger", "none", "single block"],
)  # fmt: skip
def test_the_sentences_say_what_the_figures_say(rows, wanted, unwanted):
    sentences = verdict(comparison(*rows))
    assert sentences[-1] == WARNING
    text = " ".join(sentences)
    assert [words for words in wanted if words not in text] == [], text
    assert [words for words in unwanted if words in text] == [], text
    assert len(sentences) <= 6


def test_the_table_is_sorted_by_memory_and_says_what_is_missing():
    found = comparison(row("checkpointed", 40, 1.3, 1.33, 1.5), row("dgl", 70, 1.1), row("mlaan paper", 55))
    found.refused.append(Refused("dgl (99 modules)", "it has 8 blocks"))
    found.finished = False
    lines = as_text(found, ["This it means."]).splitlines()
    assert [line.split("  ")[0] for line in lines[1:5]] == [
        "checkpointed (5 segments)",
        "mlaan paper (4 modules, lean)",
        "dgl (4 modules, lean)",
        "end-to-end",
    ]
    assert lines[1].split("MiB")[-1].split()[:4] == ["1330.0", "24.1", "1.33", "1.30-1.50"]
    assert "*" in lines[1]
    assert "*" not in lines[2]
    assert "not measured: dgl (99 modules): it has 8 blocks" in lines
    assert any(line.startswith("Stopped early") for line in lines)
    assert "This it means." in lines
    assert "updates each weight within the backward" in lines[-2]


def test_memory_that_stays_between_steps_is_told_where_it_matters():
    large = row("mlaan paper", 50, 1.1)
    large.held_bytes = 30 * 2**20
    assert "29 MiB more" in " ".join(verdict(comparison(large)))
    assert "more" not in verdict(comparison(row("mlaan light", 50, 1.1)))[0]
