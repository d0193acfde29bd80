"""The table of configs/README.md, out of the files: `python tests/configs/readme.py` writes it anew."""

import re
from collections.abc import Iterator
from pathlib import Path

from mlaan.cli.settings import load_config
from mlaan.table.rows import PUBLISHED, Published, read_published

CONFIGS = Path(__file__).parents[2] / "configs"
README = CONFIGS / "README.md"
DATA = {"cifar10": "CIFAR-10", "svhn": "SVHN", "stl10": "STL-10", "imagenet": "ImageNet"}
_NAME = re.compile(r"(?P<net>\w+?)_k(?P<k>\d+)_(?P<method>\w+)")
_START, _END = "<!-- rows: written by tests/configs/readme.py -->", "<!-- end of rows -->"


def rows(data: str) -> list[Path]:
    """The row files of one data set, by backbone, K and method."""

    def order(file: Path) -> tuple[str, int, str]:
        net, k, method = split(file)
        return net, k, method

    return sorted((CONFIGS / "paper" / data).glob("*.toml"), key=order)


def split(file: Path) -> tuple[str, int, str]:
    """Backbone, the papers' K, and method of a row file, out of its name."""
    match = _NAME.fullmatch(file.stem)
    assert match, f"{file} is not called <backbone>_k<K>_<method>.toml"
    return match["net"], int(match["k"]), match["method"]


def tables() -> str:
    """One Markdown table per data set."""
    published = read_published(CONFIGS / "paper" / PUBLISHED)
    return "\n".join(line for data in DATA for line in _table(data, published))


def _table(data: str, published: dict[str, Published]) -> Iterator[str]:
    yield from ("", f"### {DATA[data]}", "")
    yield "| config | K there | modules here | epochs | top-1 error % | GB | source |"
    yield "|---|---|---|---|---|---|---|"
    for file in rows(data):
        config = load_config(file, [])
        figure = published.get(f"{data}/{file.stem}", Published())
        error = "" if figure.error is None else f"{figure.error:.2f}{' (n)' if figure.secondary else ''}"
        memory = "" if figure.memory_gb is None else f"{figure.memory_gb:.2f}"
        link = f"[{data}/{file.stem}](paper/{data}/{file.name})"
        cells = [link, split(file)[1], config.partition.modules, config.train.epochs, error, memory, figure.source]
        yield f"| {' | '.join(map(str, cells))} |"


def written() -> str:
    """The README with the present table in it."""
    before, _, rest = README.read_text(encoding="utf-8").partition(_START)
    _, end, after = rest.partition(_END)
    assert end, f"{README} lacks the marks around its table"
    return f"{before}{_START}\n{tables()}\n\n{_END}{after}"


if __name__ == "__main__":
    README.write_text(written(), encoding="utf-8")
