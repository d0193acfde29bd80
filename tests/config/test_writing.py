"""Written TOML reads back equal, whatever the values; every setting is listed."""

import contextlib
import dataclasses
import math
import tomllib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from config.trees import Circle, Demanding, Grid, Inner, Needs, Part, Tree
from mlaan.config import Setting, describe, dumps, load
from mlaan.errors import UserError

finite = st.floats(allow_nan=False, allow_infinity=False)
text = st.text(st.characters(exclude_categories=["Cs"]))
shapes = st.one_of(
    st.builds(Circle, radius=finite, colour=st.sampled_from(["red", "blue"])),
    st.builds(Grid, rows=st.integers(), colour=st.sampled_from(["red", "green"])),
)
trees = st.builds(
    Tree,
    title=text,
    shape=shapes,
    part=st.builds(
        Part,
        count=st.integers(min_value=0),
        rate=finite,
        on=st.booleans(),
        text=text,
        cuts=st.one_of(st.sampled_from(["even", "odd"]), st.lists(st.integers()).map(tuple)),
        scales=st.lists(finite).map(tuple),
        either=st.one_of(text, st.integers()),
        inner=st.builds(Inner, level=st.sampled_from([1, 2, "auto"]), shape=shapes),
    ),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("written")


@settings(deadline=None)
@given(tree=trees)
def test_what_is_written_reads_back_equal(folder, tree):
    file = folder / "x.toml"
    file.write_bytes(dumps(tree).encode())
    back = load(Tree, file)
    assert back == tree
    # Equality cannot tell -0.0 from 0.0 or 1 from True; the canonical text can.
    assert dumps(back) == dumps(tree)


@settings(deadline=None)
@given(key=text, value=st.one_of(text, st.integers()))
def test_an_override_fails_in_no_other_way(key, value):
    for name in (key, f"part.{key}", f"shape.{key}"):
        with contextlib.suppress(UserError):
            load(Tree, None, [(name, str(value))])


def test_the_text_is_canonical():
    written = dumps(Tree(shape=Circle(radius=1e-5, colour="blue")))
    assert written.startswith(
        '# a top-level value\ntitle = "untitled"\n\n# Every kind of value.\n[part]\n# a count\ncount = 3\n'
    )
    assert written.endswith(
        '\n# What is drawn.\n[shape]\n# A round one.\nname = "circle"\n'
        '# radius in metres\nradius = 1e-05\n# its colour\ncolour = "blue"\n'
    )
    assert 'cuts = "even"\n' in written
    assert "scales = [1.0, 0.5]\n" in written
    assert '[part.inner.shape]\nname = "grid"\n' in written


def test_long_help_is_wrapped_into_comments():
    @dataclasses.dataclass(frozen=True)
    class Wordy:
        value: int = dataclasses.field(default=1, metadata={"help": "many words\n" * 40})

    lines = dumps(Wordy()).splitlines()
    assert len(lines) > 3
    assert all(line.startswith("# ") and len(line) <= 102 for line in lines[:-1])
    assert tomllib.loads(dumps(Wordy())) == {"value": 1}
    assert describe(Wordy)[0].help == " ".join(["many words"] * 40)


def test_letters_that_toml_wants_escaped():
    text = "\0\x1f\x7f\t\n\r\\\"'é"
    assert tomllib.loads(dumps(Tree(title=text)))["title"] == text


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_none_are_refused(value):
    with pytest.raises(UserError, match=rf"^shape.radius = {value} must be a finite number$"):
        dumps(Tree(shape=Circle(radius=value)))


def test_a_value_of_the_wrong_type_is_refused():
    with pytest.raises(UserError, match=r"^part\.count = 1\.5 must be an integer$"):
        dumps(Tree(part=Part(count=1.5)))  # pyright: ignore[reportArgumentType]


def test_half_a_character_is_refused():
    with pytest.raises(UserError, match="holds half a character"):
        dumps(Tree(title="\ud800"))


def test_describe_lists_every_setting_of_every_member():
    rows = describe(Tree)
    assert rows[0] == Setting("title", "a text", "untitled", "a top-level value", (), "")
    cuts = Setting(
        "part.cuts", "'even', 'odd' or a list of integers", "even", "even, odd or a list", ("even", "odd"), ""
    )
    assert cuts in rows
    shape = [row for row in rows if row.key.startswith("shape.")]
    assert shape == [
        Setting("shape.name", "'circle' or 'grid'", "circle", "What is drawn.", ("circle", "grid"), ""),
        Setting("shape.radius", "a finite number", 2.0, "radius in metres", (), "circle"),
        Setting("shape.colour", "'red' or 'blue'", "red", "its colour", ("red", "blue"), "circle"),
        Setting("shape.rows", "an integer", 2, "number of rows", (), "grid"),
        Setting("shape.colour", "'red' or 'green'", "green", "its colour", ("red", "green"), "grid"),
    ]
    assert [row.default for row in rows if row.key == "part.inner.shape.rows"] == [5]


def test_describe_shows_none_where_there_is_no_default():
    assert {row.key: row.default for row in describe(Needs)}["demanding.size"] is None
    assert Setting("shape.name", "'circle' or 'grid'", None, "What is drawn.", ("circle", "grid"), "") in describe(
        Demanding
    )
