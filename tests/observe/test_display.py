"""What a person sees while a run goes on."""

import importlib.util
import io
import math
import re

import pytest

from mlaan.observe.display import choose_display
from mlaan.observe.plain import PlainDisplay
from mlaan.observe.snapshot import Snapshot
from mlaan.observe.words import duration, mebibytes, percent, spread


def snapshot(modules: int = 2, **changes) -> Snapshot:
    names = [f"{m}.{kind}" for m in range(modules - 1) for kind in ("independent", "cascaded")]
    names.append(f"{modules - 1}.classifier")
    values = {
        "epoch": 3,
        "epochs": 20,
        "batch": 7,
        "batches": 22,
        "step": 51,
        "seconds": 61.0,
        "seconds_left": 3725.0,
        "learning_rate": 0.05,
        "images_per_second": 1234.5,
        "data_wait": 0.0,
        "left_out": 0,
        "memory_bytes": 300 * 2**20,
        "losses": {name: 0.125 * (i + 1) for i, name in enumerate(names)},
        "top1": dict.fromkeys(names, 0.5),
    }
    return Snapshot(**{**values, **changes})


def test_plain_lines_say_everything_in_one_line():
    stream = io.StringIO()
    display = PlainDisplay(stream)
    display.step(snapshot())
    display.epoch(snapshot(test_loss=0.5, test_top1=0.9, best_top1=0.95))
    step, epoch = stream.getvalue().splitlines()
    assert step == (
        "epoch  3/20 | step 7/22 | loss independent 0.125, cascaded 0.250, classifier 0.375 | 1234 img/s | "
        "300 MiB | 1:02:05 left"
    )
    assert "test 90.0 %, best 95.0 %" in epoch


def test_loss_scales_and_left_out_updates_are_shown_where_there_are_any():
    stream = io.StringIO()
    PlainDisplay(stream).step(snapshot(skipped=1, scale=16384.0))
    assert " | 300 MiB | loss scale 16384 | 1 update left out | " in stream.getvalue()


def test_plain_lines_of_deep_networks_stay_short():
    stream = io.StringIO()
    PlainDisplay(stream).epoch(snapshot(54))
    kinds = re.findall(r"independent ([\d. ]+),", stream.getvalue())
    assert len(kinds[0].split()) == 8
    assert len(stream.getvalue()) < 300


def test_off_a_terminal_lines_are_plain_and_rare():
    display = choose_display(io.StringIO())
    assert isinstance(display, PlainDisplay)
    assert display.interval >= 30


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    for name in ("NO_COLOR", "CI", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LINES", "24")
    monkeypatch.setenv("COLUMNS", "100")
    return Terminal()


def test_on_a_terminal_a_table_shows_every_module(terminal):
    pytest.importorskip("rich", reason="rich is not installed")
    display = choose_display(terminal)
    display.step(snapshot(3))
    display.epoch(snapshot(3, test_loss=0.5, test_top1=0.9, best_top1=0.95))
    display.close()
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", terminal.getvalue())
    for words in ("independent", "cascaded", "classifier", "0.1250", "0.6250", "50.0 %", "1234 img/s"):
        assert words in text
    for words in ("300 MiB", "1:02:05 left", "epoch  3/20  test loss 0.500  top-1 90.0 %  best 95.0 %"):
        assert words in text


def test_a_low_window_shows_some_modules_and_says_so(terminal):
    pytest.importorskip("rich", reason="rich is not installed")
    display = choose_display(terminal)
    display.step(snapshot(54))
    display.close()
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", terminal.getvalue())
    assert "15 of 54 modules" in text
    assert "│     53 │" in text
    assert len(text[text.rindex("┏") :].splitlines()) <= 24


def test_without_rich_a_terminal_gets_plain_lines_and_one_sentence(terminal, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert isinstance(choose_display(terminal), PlainDisplay)
    assert terminal.getvalue().count("\n") == 1
    assert "pip install rich" in terminal.getvalue()


def test_words():
    assert [duration(s) for s in (0, 59.6, 61, 3599.7, 3725)] == ["0:00", "1:00", "1:01", "1:00:00", "1:02:05"]
    assert (duration(math.nan), percent(math.nan)) == ("-", "-")
    assert (mebibytes(300 * 2**20), mebibytes(20 * 2**30)) == ("300 MiB", "20.0 GiB")
    assert spread(5, 8) == [0, 1, 2, 3, 4]
    assert spread(100, 3) == [0, 50, 99]


def test_waiting_for_data_and_images_left_out_are_shown_where_there_is_something_to_show():
    stream = io.StringIO()
    display = PlainDisplay(stream)
    display.step(snapshot(data_wait=0.04))
    display.step(snapshot(data_wait=0.25, left_out=3))
    quiet, loud = stream.getvalue().splitlines()
    assert "waiting" not in quiet
    assert "left out" not in quiet
    assert "| 25.0 % waiting for data | 3 images left out |" in loud
