"""Which config files are meant, and the figure that belongs to each."""

import pytest

from mlaan.errors import UserError
from mlaan.table.rows import PUBLISHED, Published, expand, published_for, read_published

FIGURES = """
[sources]
infopro = "InfoPro"

[rows]
"svhn/a" = { error = 5.5, source = "infopro" }
"svhn/b" = { error = 4.5, source = "infopro", secondary = true, memory_gb = 9.5 }
"""


@pytest.fixture
def paper(tmp_path):
    (tmp_path / PUBLISHED).write_text(FIGURES)
    for data in ("svhn", "stl10"):
        (tmp_path / data).mkdir()
        for name in "ba":
            (tmp_path / data / f"{name}.toml").touch()
    return tmp_path


def test_a_folder_means_its_own_files_by_name(paper):
    assert expand([paper / "svhn"]) == [paper / "svhn/a.toml", paper / "svhn/b.toml"]
    assert expand([paper / "svhn/b.toml", paper / "svhn"]) == [paper / "svhn/b.toml", paper / "svhn/a.toml"]
    (paper / "own.toml").touch()
    assert expand([paper]) == [paper / "own.toml"]


def test_a_folder_without_configs_names_those_below(paper):
    with pytest.raises(UserError, match="holds no config: name one of its folders: stl10, svhn"):
        expand([paper])


def test_two_files_of_one_name_are_refused(paper):
    with pytest.raises(UserError, match=r"svhn/a.toml and .*stl10/a.toml have one name"):
        expand([paper / "svhn", paper / "stl10"])


def test_the_nearest_figures_above_a_file_count(paper, monkeypatch):
    assert published_for(paper / "svhn/a.toml") == ("svhn/a", Published(5.5, "InfoPro"))
    assert published_for(paper / "svhn/b.toml") == ("svhn/b", Published(4.5, "InfoPro", True, 9.5))
    assert published_for(paper / "stl10/a.toml") == ("stl10/a", Published())
    monkeypatch.chdir(paper / "svhn")
    assert published_for(paper / "svhn/a.toml") == published_for(type(paper)("a.toml"))
    (paper / "svhn" / PUBLISHED).write_text("[sources]\n[rows]\na = { error = 1.0 }\n")
    assert published_for(paper / "svhn/a.toml") == ("a", Published(1.0))


def test_a_file_without_figures_has_its_name(tmp_path):
    assert published_for(tmp_path / "a.toml") == ("a", Published())


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[rows", "is not valid TOML"),
        ('[sources]\n[rows]\na = { error = 1.0, source = "x" }', "row 'a': 'x': its keys are error, source"),
        ("[sources]\n[rows]\na = { eror = 1.0 }", "'eror'"),
    ],
)
def test_wrong_figures_name_the_row(tmp_path, text, says):
    (tmp_path / PUBLISHED).write_text(text)
    with pytest.raises(UserError, match=says):
        read_published(tmp_path / PUBLISHED)
