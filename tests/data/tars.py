"""Tar files as WebDataset writes them."""

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from data.official_files import smooth


def encoded(seed: int, kind: str = "JPEG", size: tuple[int, int] = (20, 30), mode: str = "RGB") -> bytes:
    """An image file."""
    content = io.BytesIO()
    image = Image.fromarray(smooth(*size, np.random.RandomState(seed))).convert(mode)
    image.save(content, kind, **({"quality": 95} if kind == "JPEG" else {}))
    return content.getvalue()


def write_tar(path: Path, members: Mapping[str, bytes | str], kind: int = tarfile.PAX_FORMAT, mode: str = "w") -> None:
    """Members in their order; a name that ends with / is a folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode, format=kind) as archive:  # pyright: ignore[reportCallIssue, reportArgumentType]
        for name, content in members.items():
            member = tarfile.TarInfo(name.rstrip("/"))
            if name.endswith("/"):
                member.type = tarfile.DIRTYPE
                archive.addfile(member)
                continue
            data = content.encode() if isinstance(content, str) else content
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def samples(labels: list[int], first: int = 0, folder: str = "") -> dict[str, bytes | str]:
    """Members <key>.jpg and <key>.cls of images of these labels."""
    found: dict[str, bytes | str] = {}
    for number, label in enumerate(labels, first):
        found[f"{folder}{number:06d}.jpg"] = encoded(number)
        found[f"{folder}{number:06d}.cls"] = str(label)
    return found
