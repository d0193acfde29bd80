"""Ours beside the published, as data and as text."""

import pytest

from mlaan.table.rows import Published
from mlaan.table.show import as_data, as_text
from table.folders import finish, row, run


@pytest.fixture
def runs(tmp_path):
    """Row a with two of three seeds finished and one begun; row b with nothing."""
    first = row(tmp_path, "a", Published(30.0, "InfoPro"))
    second = row(tmp_path, "b", Published(8.42, "a later paper", True))
    every = [run(tmp_path, each, seed) for seed in range(3) for each in (first, second)]
    finish(every[0], top1=0.75, seconds=10)
    finish(every[2], top1=0.5, seconds=30)
    finish(every[4], epochs=1)
    return every


def test_mean_and_spread_are_over_finished_seeds_after_the_last_epoch(runs):
    a, b = as_data(runs)
    assert (a["error"], a["n"], a["epochs"]) == (37.5, 2, 3)
    assert a["spread"] == pytest.approx(12.5 * 2**0.5)  # the sample's: n - 1
    assert (a["images_per_second"], a["seconds"], a["memory_bytes"]) == (102, 20, 7)
    assert {seed: each["state"] for seed, each in a["seeds"].items()} == {0: "finished", 1: "finished", 2: "stopped"}
    assert (a["published_error"], a["source"], a["secondary"]) == (30.0, "InfoPro", False)
    assert (b["error"], b["spread"], b["n"], b["seconds"]) == (None, None, 0, None)
    assert b["seeds"][0] | {"folder": ""} == {
        "folder": "",
        "state": "missing",
        "epoch": 0,
        "test_top1": None,
        "best_top1": None,
        "images_per_second": None,
        "seconds": 0.0,
        "memory_bytes": None,
    }


def test_the_text_has_marks_spread_and_what_is_left(runs):
    lines = as_text(as_data(runs)).splitlines()
    assert lines[1].split() == ["a", "30.00", "37.50", "±", "17.68", "2", "3", "102", "1", "begun"]
    assert lines[2].split() == ["b", "8.42", "(n)", "-", "0", "3", "-", "3", "missing"]
    assert len({len(line.split("  ")[0]) for line in lines[:3]}) <= 3
    text = "\n".join(lines[4:])
    assert "the last epoch" in text
    assert "standard deviation over n seeds" in text
    assert "secondary source" in text


def test_one_seed_has_no_spread_and_no_mark_no_note(runs):
    text = as_text(as_data(runs[:1]))
    assert "25.00" in text
    assert "±" not in text.splitlines()[1]
    assert "secondary" not in text
