"""The folder of one run, and what is called how in it."""

import json
import re
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mlaan.config import Config, dumps
from mlaan.errors import UserError


@dataclass(frozen=True)
class RunFolder:
    """A folder with config.toml, env.json, metrics.jsonl, last.pt, best.pt, tensorboard/ and report.png."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.toml"

    @property
    def environment(self) -> Path:
        return self.path / "env.json"

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
            if folder.path.is_dir() and any(folder.path.iterdir()):
                raise UserError(f"run.folder = {config.run.folder!r} holds other files: give a new or empty folder")
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

    def remove_leftovers(self) -> None:
        """Deletes what a process that was killed while it wrote a checkpoint left behind."""
        for leftover in self.path.glob(".*.pt.*.tmp"):
            leftover.unlink()

    def write_config(self, config: Config) -> None:
        """Writes config.toml, in one step; without run.folder, so that a run from it gets a folder of its own."""
        config = replace(config, run=replace(config.run, folder=""))
        temporary = self.config.with_suffix(".toml.tmp")
        temporary.write_text(dumps(config), encoding="utf-8")
        temporary.replace(self.config)

    def write_environment(self, environment: dict[str, Any]) -> None:
        self.environment.write_text(json.dumps(environment, indent=2) + "\n")

    def read_environment(self) -> dict[str, Any]:
        """What `write_environment` wrote; empty where the file is gone."""
        try:
            return json.loads(self.environment.read_text())
        except (OSError, ValueError):
            return {}

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
