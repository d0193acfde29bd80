"""Packs of small folders, in shards of few images."""

from dataclasses import replace
from pathlib import Path

from mlaan.data.check import open_part
from mlaan.data.pack import Packed, PackSettings, pack_part

SETTINGS = PackSettings(size=32, form="jpeg", quality=95, shard_bytes=4000)


def pack(root: Path, out: Path, *, part: str = "train", workers: int = 1, progress=None, **changes) -> Packed:
    """Packs one part of `root` into out / part, with some of SETTINGS changed."""
    told = {"progress": progress} if progress else {}
    opened = open_part(root / part, str(root))
    return pack_part(opened, root / part, out / part, replace(SETTINGS, **changes), workers, **told)


def contents(folder: Path) -> dict[str, bytes]:
    """All files of a folder and those below it."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
