"""One config with one seed: its run folder, and what has been reached there."""

import tomllib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from mlaan.checkpoint import flat
from mlaan.config import Config, dumps, load
from mlaan.config.values import show
from mlaan.errors import UserError
from mlaan.observe.metrics import read_epochs
from mlaan.run_folder import RunFolder
from mlaan.table.rows import Row

State = Literal["missing", "stopped", "finished"]


@dataclass(frozen=True)
class Run:
    """A row's config with one seed.

    Attributes:
        folder: its run folder, <folder of the table>/<name of the config file>-seed<seed>.
    """

    row: Row
    seed: int
    folder: RunFolder

    @property
    def name(self) -> str:
        return self.folder.path.name

    @property
    def log(self) -> Path:
        """What its processes print."""
        return self.folder.path.with_name(f"{self.name}.log")

    @property
    def config(self) -> Config:
        return replace(self.row.config, train=replace(self.row.config.train, seed=self.seed))

    def epochs(self) -> list[dict[str, Any]]:
        """The epoch lines of its metrics so far."""
        return read_epochs(self.folder.metrics) if self.folder.metrics.exists() else []

    def state(self) -> State:
        """Finished: all epochs are in metrics.jsonl, and the checkpoint of the last one was written after it."""
        if not self.folder.holds_run():
            return "missing"
        epochs = self.epochs()
        if not epochs or epochs[-1]["epoch"] < self.row.config.train.epochs or not self.folder.last.exists():
            return "stopped"
        is_saved = self.folder.last.stat().st_mtime_ns >= self.folder.metrics.stat().st_mtime_ns
        return "finished" if is_saved else "stopped"

    def require_same_settings(self) -> None:
        """Raises UserError, naming the key, where the run there was made with other settings than the row's.

        Only run.* may differ: more epochs in the middle of a cosine rate would be another recipe, too.
        """
        if not self.folder.holds_run():
            return
        there, here = (flat(tomllib.loads(dumps(each))) for each in (load(Config, self.folder.config), self.config))
        for key in [*here, *(key for key in there if key not in here)]:
            if not key.startswith("run.") and there.get(key) != here.get(key):
                raise UserError(
                    f"{self.folder.path} holds a run with {key} = {show(there.get(key))}, but {self.row.file} now says "
                    f"{show(here.get(key))}: give another --folder, or remove that one"
                )

    def require_own_folder(self) -> None:
        """Raises UserError where the folder holds files that no run writes."""
        if not self.folder.holds_run() and (others := self.folder.others()):
            raise UserError(f"{self.folder.path} holds {others[0]}, which is of no run: give another --folder")
