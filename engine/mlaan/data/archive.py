"""Data sets from their authors' files: looked for, downloaded where there is a network, else asked for."""

import socket
import sys
import tarfile
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from mlaan.config import setting
from mlaan.data.dataset import Dataset
from mlaan.data.source import SubsetSource
from mlaan.errors import UserError

_PATIENCE = 30.0
"""Seconds without an answer: a firewall that drops packets would otherwise hold a run for ever."""


@dataclass(frozen=True)
class Archive:
    """One official download."""

    url: str
    name: str
    """What it is called on the disk."""
    md5: str
    files: tuple[str, ...]
    """What is wanted of it, as paths below data.root; `name` itself where nothing is packed into it."""

    @property
    def is_packed(self) -> bool:
        return self.name not in self.files


class Damaged(Exception):
    """A file is not what its format says."""

    def __init__(self, path: Path, fault: str) -> None:
        super().__init__(f"{path} is damaged ({' '.join(fault.split())})")
        self.path = path


@dataclass(frozen=True)
class ArchiveSource(SubsetSource):
    """A data set in memory whose authors offer its files for download.

    Files that are in data.root are taken as they are, with their format checked and not their md5, which holds
    for a download alone. So a smaller set in the same format does as well.
    """

    root: str = setting("data", "folder that holds the files")
    download: bool = setting(True, "fetch the files from their authors where data.root lacks them")

    @abstractmethod
    def archives(self) -> tuple[Archive, ...]:
        """Where the files come from."""

    @abstractmethod
    def read_files(self, folder: Path) -> Dataset:
        """Both parts from `folder`, which holds all files; raises Damaged or OSError."""

    def read(self) -> Dataset:
        """Both parts; raises UserError where a file is missing and cannot be downloaded, or is damaged."""
        folder = Path(self.root).expanduser()
        archives = self.archives()
        if lacking := [archive for archive in archives if _missing(archive, folder)]:
            self._complete(lacking, folder)
        try:
            return self.read_files(folder)
        except Damaged as fault:
            name = str(fault.path.relative_to(folder))
            url = next(archive.url for archive in archives if name in archive.files)
            raise UserError(f"{fault}: delete it and set data.download = true, or get it anew from {url}") from None
        except OSError as error:
            raise UserError(f"cannot read {error.filename}: {error.strerror}: mend data.root = {self.root!r}") from None

    def _complete(self, lacking: list[Archive], folder: Path) -> None:
        files = ", ".join(name for archive in lacking for name in _missing(archive, folder))
        lacks = f"data.root = {self.root!r} lacks {files}"
        by_hand = f"get {' and '.join(archive.url for archive in lacking)} and "
        by_hand += "unpack it there" if lacking[0].is_packed else "put it there"
        if not self.download:
            raise UserError(f"{lacks}: set data.download = true, or {by_hand}")
        was_there = folder.exists()
        try:
            for archive in lacking:
                _fetch(archive, folder)
        except (OSError, RuntimeError, HTTPException, tarfile.TarError, EOFError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            if not was_there:
                with suppress(OSError):  # it stays where something has come into it
                    folder.rmdir()
            raise UserError(f"{lacks}, and the download failed ({reason}): {by_hand}") from None


def _missing(archive: Archive, folder: Path) -> list[str]:
    return [name for name in archive.files if not (folder / name).is_file()]


def _fetch(archive: Archive, folder: Path) -> None:
    """Downloads, checks the md5, unpacks. RuntimeError where the md5 is wrong or a wanted file is not in it."""
    from torchvision.datasets.utils import download_and_extract_archive, download_url

    print(f"downloading {archive.url} into {folder}", file=sys.stderr)
    get = download_and_extract_archive if archive.is_packed else download_url
    with _patience():
        get(archive.url, str(folder), filename=archive.name, md5=archive.md5)
    if missing := _missing(archive, folder):
        raise RuntimeError(f"it does not hold {missing[0]}")


@contextmanager
def _patience() -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_PATIENCE)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
