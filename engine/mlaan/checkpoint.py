"""Checkpoints: all that a run needs to go on as if it had never stopped, in a signed file."""

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mlaan import signed
from mlaan.config.values import show
from mlaan.errors import UserError

FORMAT = 1
"""Raised whenever what is written no longer fits the `load` of before."""

CHANGEABLE = ("run.", "train.epochs", "memory.limit", "data.root", "data.backend", "data.workers", "data.download")
"""Settings that a run may go on with other values of."""


@dataclass(frozen=True)
class Checkpoint:
    """All that a run needs to go on as if it had never stopped.

    Attributes:
        config: the resolved settings, as TOML.
        engine, loader, progress: what `state_dict()` of engine, training batches and `TrainState` gave.
        random: what `random_state` gave.
        metrics_bytes: length of metrics.jsonl at that moment.
    """

    config: str
    engine: dict[str, Any]
    loader: dict[str, Any]
    progress: dict[str, Any]
    random: dict[str, Tensor]
    metrics_bytes: int


_FIELDS = tuple(field.name for field in fields(Checkpoint))


def random_state(device: torch.device) -> dict[str, Tensor]:
    """States, uint8, of the torch generators that a run on `device` draws from."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def set_random_state(states: dict[str, Tensor], device: torch.device) -> None:
    """Puts back what `random_state` gave; on a device of another type, the CPU's part of it."""
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)


def save(checkpoint: Checkpoint, path: Path, links: Sequence[Path] = ()) -> None:
    """Writes `path`, and before it the same content under the names `links`; see `signed.write`.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    signed.write({"format": FORMAT} | {name: getattr(checkpoint, name) for name in _FIELDS}, path, links)


def load(path: Path) -> Checkpoint:
    """Reads a checkpoint onto the CPU.

    Raises:
        UserError: no such file, cut short, damaged, not a checkpoint, or of another format.
    """
    try:
        content = signed.read(path)
    except signed.Damaged as damage:
        raise signed.Damaged(f"{damage}: {_instead_of(path)}") from None
    found = content.get("format")
    if found != FORMAT:
        raise UserError(f"{path} has checkpoint format {found}, this mlaan reads {FORMAT}: use the mlaan that wrote it")
    return Checkpoint(**{name: content[name] for name in _FIELDS})


def load_first(paths: Sequence[Path]) -> tuple[Checkpoint, Path, list[str]]:
    """The first checkpoint that is whole, its file, and a line on each one before it that is not.

    Raises:
        UserError: none is.
    """
    skipped: list[str] = []
    for path in paths:
        try:
            return load(path), path, skipped
        except signed.Damaged as damage:
            skipped.append(str(damage).split(": ")[0])
    if not skipped:
        raise UserError("there is no checkpoint: start a new run")
    raise UserError(f"no checkpoint is whole ({'; '.join(skipped)}): put a copy of one in its place, or train anew")


def require_same_run(checkpoint: Checkpoint, config: str, path: Path) -> None:
    """Checks that the checkpoint at `path` was written under the settings `config`, as TOML.

    Raises:
        UserError: a setting other than run.* and train.epochs differs; the message names it and both models.
    """
    saved, here = (flat(tomllib.loads(text)) for text in (checkpoint.config, config))
    for key in [*here, *(key for key in saved if key not in here)]:
        if not key.startswith(CHANGEABLE) and saved.get(key) != here.get(key):
            there, this = show(saved.get(key)), show(here.get(key))
            raise UserError(
                f"{path} holds a {saved['model.name']} of another run, this run trains {here['model.name']}: "
                f"{key} is {there} there and {this} here; put this run's own file back"
            )


def flat(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as one, with dotted keys."""
    values: dict[str, Any] = {}
    for key, value in table.items():
        values |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return values


def _instead_of(path: Path) -> str:
    """What to do without the checkpoint at `path`."""
    others = [path.with_name(name) for name in ("last.pt", "best.pt")]
    others += sorted(path.parent.glob("checkpoints/step-*.pt"), reverse=True)
    other = next((other for other in others if other.exists() and not other.samefile(path)), None)
    return f"take {other}" if other else "put a copy of it in its place, or train anew"
