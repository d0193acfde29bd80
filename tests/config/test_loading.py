"""Files, inheritance, overrides, and the one line that every mistake gets."""

import pytest

from config.trees import Circle, Grid, Inner, Needs, Part, Tree
from mlaan.config import load
from mlaan.errors import UserError


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes a file in an empty current folder and gives its relative path."""
    monkeypatch.chdir(tmp_path)

    def write(text, name="x.toml"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path.relative_to(tmp_path)

    return write


def refused(file, overrides=()):
    """The message of the UserError that loading must raise."""
    with pytest.raises(UserError) as caught:
        load(Tree, file, overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_defaults_alone():
    assert load(Tree) == Tree()


def test_a_file_changes_only_what_it_names(write):
    file = write("title = 'mine'\n[part]\nrate = 2\ncuts = [0, 3]\n[part.inner]\nlevel = 2\n")
    tree = load(Tree, file)
    assert tree == Tree(title="mine", part=Part(rate=2.0, cuts=(0, 3), inner=Inner(level=2)))
    assert type(tree.part.rate) is float


def test_overrides_beat_the_file_and_the_last_of_one_key_counts(write):
    file = write("[part]\ncount = 7\ntext = 'file'\n")
    part = load(Tree, file, [("part.count", "8"), ("part.count", "9"), ("part.scales", "[]")]).part
    assert (part.count, part.text, part.scales) == (9, "file", ())


def test_an_absent_name_keeps_the_default_member_and_its_values(write):
    assert load(Tree, write("[shape]\ncolour = 'blue'\n")).shape == Circle(radius=2.0, colour="blue")


def test_a_name_picks_the_member_with_the_defaults_of_its_class(write):
    assert load(Tree, write("[shape]\nname = 'grid'\nrows = 4\n")).shape == Grid(rows=4, colour="green")


def test_an_override_of_the_name_starts_the_section_anew(write):
    file = write("[shape]\nradius = 3.0\ncolour = 'blue'\n")
    assert load(Tree, file, [("shape.name", "grid")]).shape == Grid()


def test_the_same_name_again_keeps_what_was_set(write):
    file = write("[shape]\nradius = 3.0\n")
    assert load(Tree, file, [("shape.name", "circle")]).shape == Circle(radius=3.0)


def test_back_to_the_default_member_means_its_default_values(write):
    file = write("[shape]\nname = 'grid'\n")
    assert load(Tree, file, [("shape.name", "circle")]).shape == Circle(radius=2.0)


@pytest.mark.parametrize("order", [1, -1])
def test_a_name_may_come_after_the_keys_of_its_member(order):
    overrides = [("part.inner.shape.name", "circle"), ("part.inner.shape.radius", "8")][::order]
    assert load(Tree, None, overrides).part.inner.shape == Circle(radius=8.0)


def test_a_wrong_key_is_found_even_where_the_name_is_changed_later(write):
    file = write("[shape]\nradus = 3.0\n")
    assert refused(file, [("shape.name", "grid")]).startswith("unknown key 'shape.radus' in x.toml")


def test_bases_are_read_first_and_relative_to_their_file(write):
    write("[part]\ncount = 1\nrate = 1.0\n[shape]\nname = 'grid'\nrows = 9\n", "all/far.toml")
    write("base = '../all/far.toml'\n[part]\ncount = 2\n", "mid/mid.toml")
    file = write("base = 'mid/mid.toml'\n[part]\ntext = 'top'\n")
    tree = load(Tree, file)
    assert (tree.part.count, tree.part.rate, tree.part.text, tree.shape) == (2, 1.0, "top", Grid(rows=9))


def test_byte_order_mark_and_windows_lines(write):
    assert load(Tree, write(b"\xef\xbb\xbf[part]\r\ncount = 5\r\n")).part.count == 5


def test_rules_of_the_dataclass_pass_through():
    assert refused(None, [("part.count", "-1")]) == "part.count = -1 must not be negative"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[part]\ncont = 1", "unknown key 'part.cont' in x.toml: did you mean 'part.count'?"),
        ("count = 1", "unknown key 'count' in x.toml: did you mean 'part.count'?"),
        ("[prat]\ncount = 1", "unknown section 'prat' in x.toml: did you mean 'part'?"),
        ("[prat]", "unknown section 'prat' in x.toml: did you mean 'part'?"),
        ("[inner]", "unknown section 'inner' in x.toml: did you mean 'part.inner'?"),
        ("[part.count]\nx = 1", "unknown key 'part.count.x' in x.toml: did you mean 'part.count'?"),
        (
            "[part.inner]\nzzzzz = 1",
            "unknown key 'part.inner.zzzzz' in x.toml: known here: part.inner.level, ",
        ),
        ("part = 3", "part = 3 in x.toml must be a section: set its keys, such as part.count"),
        ("[[part]]", "part = [a table] in x.toml must be a section: set its keys, such as part.count"),
        ("[part]\ncount = 'four'", "part.count = 'four' must be an integer (x.toml)"),
        ("[part]\ncount = true", "part.count = true must be an integer (x.toml)"),
        ("[part]\ncount = 1.5", "part.count = 1.5 must be an integer (x.toml)"),
        ("[part.count]", "part.count = a table must be an integer (x.toml)"),
        ("[part]\non = 1", "part.on = 1 must be true or false (x.toml)"),
        ("[part]\nrate = true", "part.rate = true must be a finite number (x.toml)"),
        ("[part]\nrate = inf", "part.rate = inf must be a finite number (x.toml)"),
        ("[part]\ntext = 1979-05-27", "part.text = 1979-05-27 must be a text (x.toml)"),
        ("[part]\ncuts = 'od'", "part.cuts = 'od' must be 'odd', 'even' or a list of integers (x.toml)"),
        (
            "[part]\ncuts = [1, 'a']",
            "part.cuts = [1, 'a'] must be 'even', 'odd' or a list of integers (x.toml)",
        ),
        ("[shape]\nname = 'gird'", "shape.name = 'gird' must be 'grid' or 'circle' (x.toml)"),
        ("[shape]\nname = 3", "shape.name = 3 must be 'circle' or 'grid' (x.toml)"),
        ("[shape]\nname = ['grid']", "shape.name = ['grid'] must be 'grid' or 'circle' (x.toml)"),
        (
            "[shape]\nrows = 3",
            "shape.rows belongs to shape.name = 'grid', not 'circle': remove it or change shape.name (x.",
        ),
        ("base = 3", "base = 3 in x.toml must be the path of a TOML file, in quotes"),
        ("base = 'gone/y.toml'", "base = 'gone/y.toml' in x.toml: no file gone/y.toml"),
        (
            "[part\n",
            "x.toml is not valid TOML: Expected ']' at the end of a table declaration (at line 1, column 6)",
        ),
        ("[part]\n\ncount = \n", "x.toml is not valid TOML: Invalid value (at line 3, column 9)"),
        ("[part]\n[part]", "x.toml is not valid TOML: Cannot declare ('part',) twice (at line 2, column 6)"),
        ("x = " + "[" * 5000, "x.toml is not valid TOML: "),
        ("x = " + "9" * 5000, "x.toml is not valid TOML: "),
        (b"title = '\xff'", "x.toml is not UTF-8 text: byte 9 is 0xff"),
    ],
)
def test_mistakes_in_a_file(write, text, message):
    assert refused(write(text)).startswith(message)


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        ("part.cont", "1", "unknown key 'part.cont' on the command line: did you mean 'part.count'?"),
        ("prat.count", "1", "unknown key 'prat.count' on the command line: did you mean 'part.count'?"),
        ("part.count.x", "1", "unknown key 'part.count.x' on the command line: did you mean 'part.count'?"),
        (
            "colour",
            "1",
            "unknown key 'colour' on the command line: did you mean 'part.inner.shape.colour' or ",
        ),
        ("", "1", "unknown key '' on the command line: known here: part, shape"),
        ("base", "y.toml", "unknown key 'base' on the command line"),
        ("part", "3", "part = '3' on the command line must be a section: set its keys, such as part.count"),
        ("part.count", "four", "part.count = 'four' must be an integer"),
        ("part.on", "yes", "part.on = 'yes' must be true or false"),
        ("part.rate", "nan", "part.rate = 'nan' must be a finite number"),
        ("part.inner.level", "3", "part.inner.level = '3' must be 'auto', 1 or 2"),
        ("shape.name", "gird", "shape.name = 'gird' must be 'grid' or 'circle'"),
        (
            "shape.rows",
            "1",
            "shape.rows belongs to shape.name = 'grid', not 'circle': remove it or change shape.name",
        ),
    ],
)
def test_mistakes_on_the_command_line(key, text, message):
    assert refused(None, [(key, text)]).startswith(message)


def test_a_missing_file_names_the_nearest_one(write):
    write("", "configs/digits.toml")
    write("", "configs/other.toml")
    message = "no file configs/digit.toml: did you mean configs/digits.toml?"
    assert refused("configs/digit.toml") == message
    assert refused(write("", "configs/other.toml").parent / "q" / "x.toml") == "no file configs/q/x.toml"
    assert refused("configs/zebra.toml") == "no file configs/zebra.toml"  # none is near


def test_a_folder_is_not_a_file(write):
    assert refused(write("", "configs/x.toml").parent) == "configs is a folder, not a TOML file"


def test_a_loop_of_links(write, tmp_path):
    write("")
    (tmp_path / "loop.toml").symlink_to("loop.toml")
    assert refused("loop.toml").startswith("cannot read loop.toml: ")


def test_bases_in_a_circle(write):
    write("base = 'sub/../x.toml'", "y.toml")
    (write("", "sub/z.toml"))
    message = "the chain of base files never ends: x.toml -> y.toml -> sub/../x.toml"
    assert refused(write("base = 'y.toml'")).endswith(message)


def test_settings_without_a_default_must_be_given():
    given = [("demanding.shape.name", "grid"), ("demanding.size", "3")]
    demanding = load(Needs, None, given).demanding
    assert (demanding.shape, demanding.size) == (Grid(), 3)
    with pytest.raises(UserError, match=r"^demanding\.size is not set .* must be an integer$"):
        load(Needs, None, given[:1])
    names = "'circle' or 'grid'"
    with pytest.raises(UserError, match=rf"^demanding\.shape\.name is not set .* must be {names}$"):
        load(Needs, None, given[1:])
    with pytest.raises(UserError, match=rf"^demanding\.shape\.name is not set .* must be {names}$"):
        load(Needs, None, [("demanding.shape.rows", "1")])
