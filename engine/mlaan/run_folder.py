"""The folder of one run, and what is called how in it."""

import errno
import fcntl
import json
import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from mlaan.atomic import LEFTOVERS, replacing
from mlaan.config import Config, dumps
from mlaan.errors import UserError

_BEGUN = (".lock", "env.json", "images.npz", "metrics.jsonl", "tensorboard", "checkpoints", "last.pt", "best.pt")
"""What a run that was killed before its first step can leave, .lock at least."""


@dataclass(frozen=True)
class RunFolder:
    """A folder with config.toml, env.json, metrics.jsonl, checkpoints/, last.pt, best.pt, tensorboard/, report.png and,
    where numbers were not finite, incidents/."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.toml"

    @property
    def environment(self) -> Path:
        return self.path / "env.json"

    @property
    def images(self) -> Path:
        """Which image files the run trains and tests on, where it reads single files."""
        return self.path / "images.npz"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def last(self) -> Path:
        return self.path / "last.pt"

    @property
    def best(self) -> Path:
        return self.path / "best.pt"

    @property
    def checkpoints(self) -> Path:
        """The folder of the newest ones; last.pt is another name of the last of them."""
        return self.path / "checkpoints"

    @property
    def incidents(self) -> Path:
        return self.path / "incidents"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def report(self) -> Path:
        return self.path / "report.png"

    @classmethod
    def create(cls, config: Config) -> "RunFolder":
        """A new folder: run.folder, or runs/<data>-<model>-<method>-<time> where that is empty.

        Raises:
            UserError: the folder holds a run already, or cannot be made.
        """
        if config.run.folder:
            folder = cls(Path(config.run.folder))
            if folder.holds_run():
                raise UserError(
                    f"run.folder = {config.run.folder!r} holds a run already: continue it with "
                    f"`mlaan train --resume {config.run.folder}`, or give another --run.folder"
                )
            if others := folder.others():
                raise UserError(
                    f"run.folder = {config.run.folder!r} holds {others[0]}, which is of no run: "
                    "give a new or empty folder"
                )
            folder._make(exist_ok=True)
            return folder
        model = re.sub(r"[^\w.-]+", "-", config.model.name)  # a model may be a file and its function
        stem = f"{config.data.name}-{model}-{config.method.name}-{time.strftime('%Y%m%d-%H%M%S')}"
        for attempt in range(1, 1000):
            folder = cls(Path("runs") / (stem if attempt == 1 else f"{stem}-{attempt}"))
            try:
                folder._make(exist_ok=False)
            except FileExistsError:
                continue
            return folder
        raise UserError(f"runs/{stem} and 999 more exist: give a --run.folder")

    @classmethod
    def open(cls, path: Path) -> "RunFolder":
        """The folder of a run that was started before.

        Raises:
            UserError: there is no run in it.
        """
        folder = cls(path)
        if not folder.holds_run():
            what = "holds no run" if path.is_dir() else "is not a run folder"
            raise UserError(f"{path} {what}: give the folder that `mlaan train` printed; it has a config.toml")
        return folder

    def holds_run(self) -> bool:
        return self.config.exists()

    def others(self) -> list[str]:
        """Names of what is in the folder of no run, but was not left by one that was killed before it began either."""
        names = sorted(entry.name for entry in self.path.iterdir()) if self.path.is_dir() else []
        if ".lock" not in names:
            return names
        return [name for name in names if name not in _BEGUN and not fnmatch(name, LEFTOVERS)]

    @contextmanager
    def locked(self) -> Iterator[str]:
        """Inside, no other process trains in this folder; gives "", or a line where that cannot be made sure.

        The system lets go of the lock when the process ends, however it does.

        Raises:
            UserError: another process does; the message tells which.
        """
        with (self.path / ".lock").open("a+b", buffering=0) as file:
            note = ""
            try:
                # not flock, which worker processes would inherit, and hold on to after a kill
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in (errno.EACCES, errno.EAGAIN):
                    file.seek(0)
                    who = file.read().decode(errors="replace").strip() or "another process"
                    raise UserError(f"{who} is training in {self.path}: wait for its end, or stop it") from None
                note = f"{self.path} is on a file system without locks: take care that only one process trains there"
            file.truncate(0)
            with suppress(OSError):  # on a full disk a second process is refused all the same
                file.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
            try:
                yield note
            finally:
                file.truncate(0)

    def newest(self) -> list[Path]:
        """The checkpoints to go on from, the newest first; each file once.

        last.pt is one of those in checkpoints/. Where it is not, somebody has put it there, to go on from it.
        """
        steps = sorted(self.checkpoints.glob("step-*.pt"), reverse=True)
        last, best = (
            [path] if path.exists() and not any(path.samefile(step) for step in steps) else []
            for path in (self.last, self.best)
        )
        return [*last, *steps, *best]

    def checkpoint(self, step: int) -> Path:
        """Where the checkpoint after that step goes."""
        return self.checkpoints / f"step-{step:09}.pt"

    def keep(self, count: int, step: int) -> None:
        """Deletes all but the newest checkpoints, of which the one after `step` was written just now.

        Those of later steps go, too: they are damaged, or of a future that the run went back behind. last.pt and
        best.pt stay.
        """
        paths = sorted(self.checkpoints.glob("step-*.pt"), reverse=True)
        past = [path for path in paths if path <= self.checkpoint(step)]
        for path in {*paths} - {*past[:count]}:
            path.unlink()

    def remove_leftovers(self) -> None:
        """Deletes what a process that was killed while it wrote left behind."""
        for folder in (self.path, self.checkpoints):
            for leftover in folder.glob(LEFTOVERS):
                leftover.unlink()

    def write_config(self, config: Config) -> None:
        """Writes config.toml, in one step; without run.folder, so that a run from it gets a folder of its own."""
        config = replace(config, run=replace(config.run, folder=""))
        self._write(self.config, dumps(config))

    def write_environment(self, environment: dict[str, Any]) -> None:
        self._write(self.environment, json.dumps(environment, indent=2) + "\n")

    def read_environment(self) -> dict[str, Any]:
        """What `write_environment` wrote; empty where the file is gone."""
        try:
            return json.loads(self.environment.read_text())
        except (OSError, ValueError):
            return {}

    @staticmethod
    def _write(path: Path, text: str) -> None:
        try:
            with replacing(path) as file:
                file.write(text.encode())
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}: make room there") from None

    def _make(self, *, exist_ok: bool) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=exist_ok)
        except FileExistsError:
            if exist_ok:
                raise UserError(f"run.folder = {str(self.path)!r} is a file: name a folder") from None
            raise
        except OSError as error:
            raise UserError(
                f"cannot make the run folder {self.path}: {error.strerror}: give another --run.folder"
            ) from None
