"""Marked blocks on Markdown pages, rewritten in place."""

import re
from collections.abc import Mapping
from pathlib import Path

from mlaan.errors import UserError

_BLOCK = re.compile(r"(<!-- study:(?P<name>[\w-]+) -->\n).*?(<!-- /study -->)", re.DOTALL)


def rewritten(text: str, blocks: Mapping[str, str], page: str) -> str:
    """`text` with what stands between `<!-- study:NAME -->` and `<!-- /study -->` replaced by the block NAME.

    Raises:
        UserError: a name that is no block, or a marker without its end.
    """
    for opening in re.finditer(r"<!-- study:([\w-]+) -->", text):
        if opening[1] not in blocks:
            raise UserError(f"{page} has a block study:{opening[1]}: there are {', '.join(blocks)}")
    if not len(_BLOCK.findall(text)) == text.count("<!-- study:") == text.count("<!-- /study -->"):
        raise UserError(f"{page} must have a line <!-- /study --> after each <!-- study:NAME -->, alone on its line")
    return _BLOCK.sub(lambda found: f"{found[1]}\n{blocks[found['name']]}\n\n{found[3]}", text)


def rewrite(path: Path, blocks: Mapping[str, str]) -> list[str]:
    """Rewrites the page and gives the names of the blocks that it does not show.

    Raises:
        UserError: as `rewritten`, or there is no such page.
    """
    if not path.exists():
        markers = f"<!-- study:{next(iter(blocks))} --> and <!-- /study -->"
        raise UserError(f"{path} is not there: make it, with the lines {markers} for each of {', '.join(blocks)}")
    text = path.read_text(encoding="utf-8")
    new = rewritten(text, blocks, str(path))
    if new != text:
        path.write_text(new, encoding="utf-8")
    return [name for name in blocks if f"<!-- study:{name} -->" not in text]
