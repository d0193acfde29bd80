"""Every type of setting: what it takes from TOML and from the command line, and what it refuses."""

import math
from typing import Literal

import pytest

from mlaan.config.values import Mismatch, choices, expected, from_text, from_toml, show

Cuts = Literal["even", "odd"] | tuple[int, ...]


@pytest.mark.parametrize(
    ("kind", "value", "result"),
    [
        (bool, True, True),
        (int, -3, -3),
        (float, 2, 2.0),
        (float, 2.5, 2.5),
        (str, "3", "3"),
        (Literal["a", 1], 1, 1),
        (tuple[int, ...], [1, 2], (1, 2)),
        (tuple[float, ...], [1, 0.5], (1.0, 0.5)),
        (tuple[int, ...], [], ()),
        (Cuts, "odd", "odd"),
        (Cuts, [0, 3], (0, 3)),
    ],
)
def test_toml_values_that_fit(kind, value, result):
    got = from_toml(kind, value)
    assert got == result
    assert type(got) is type(result)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (bool, 1),
        (bool, "true"),
        (int, True),
        (int, 3.0),
        (int, "3"),
        (float, True),
        (float, "0.5"),
        (float, math.inf),
        (float, math.nan),
        (float, 10**400),
        (str, 3),
        (Literal[1], True),
        (Literal[1], 1.0),
        (tuple[int, ...], 3),
        (tuple[int, ...], [1, True]),
        (tuple[int, ...], [1, [2]]),
        (tuple[float, ...], [math.nan]),
        (Cuts, "evn"),
        (Cuts, [0.5]),
        (int, {}),
    ],
)
def test_toml_values_that_do_not_fit(kind, value):
    with pytest.raises(Mismatch):
        from_toml(kind, value)


@pytest.mark.parametrize(
    ("kind", "text", "result"),
    [
        (bool, "true", True),
        (bool, "false", False),
        (int, "-12", -12),
        (int, "1_000", 1000),
        (float, "1e-4", 1e-4),
        (float, "3", 3.0),
        (str, " 3 ", " 3 "),
        (Literal["a", 1], "1", 1),
        (Literal["1", 1], "1", "1"),
        (tuple[int, ...], "[0,3, 5]", (0, 3, 5)),
        (tuple[int, ...], "0,3,5", (0, 3, 5)),
        (tuple[int, ...], "7", (7,)),
        (tuple[int, ...], "[7,]", (7,)),
        (tuple[int, ...], "[]", ()),
        (tuple[float, ...], "1,.5", (1.0, 0.5)),
        (Cuts, "even", "even"),
        (Cuts, "0,3", (0, 3)),
        (str | int, "3", 3),
        (str | int, "three", "three"),
    ],
)
def test_texts_that_fit(kind, text, result):
    got = from_text(kind, text)
    assert got == result
    assert type(got) is type(result)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (bool, "1"),
        (bool, "True"),
        (bool, ""),
        (int, ""),
        (int, "3.0"),
        (int, "٣"),
        (int, "1" * 5000),
        (float, "nan"),
        (float, "inf"),
        (float, "1e999"),
        (float, "half"),
        (Literal["a", 1], "b"),
        (tuple[int, ...], ""),
        (tuple[int, ...], "1,,2"),
        (tuple[int, ...], "[1,2"),
        (tuple[int, ...], "1,x"),
        (Cuts, "evn"),
    ],
)
def test_texts_that_do_not_fit(kind, text):
    with pytest.raises(Mismatch):
        from_text(kind, text)


@pytest.mark.parametrize("kind", [dict, tuple[int, int], tuple[tuple[int, ...], ...], bytes, int | None])
def test_types_that_a_setting_cannot_have(kind):
    value = [[1]] if kind not in (int | None,) else 1.5
    with pytest.raises(TypeError, match="a setting cannot have the type"):
        from_toml(kind, value)
    with pytest.raises(TypeError, match="a setting cannot have the type"):
        from_text(kind, "one")


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (bool, "true or false"),
        (int, "an integer"),
        (float, "a finite number"),
        (str, "a text"),
        (Literal["even", "odd"], "'odd' or 'even'"),
        (Cuts, "'odd', 'even' or a list of integers"),
        (tuple[float, ...], "a list of finite numbers"),
    ],
)
def test_expected_puts_the_choice_most_like_the_value_first(kind, words):
    assert expected(kind, "odt") == words


def test_choices_are_those_of_every_literal():
    assert choices(Cuts) == ("even", "odd")
    assert choices(int) == ()


def test_shown_values_stay_on_one_short_line():
    assert show("a\nb") == r"'a\nb'"
    assert show([1, True, "x"]) == "[1, true, 'x']"
    assert show({"a": 1}) == "a table"
    assert len(show("x" * 500)) < 70
