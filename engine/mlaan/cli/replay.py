"""`mlaan replay`: the step of a run that left something not finite, run again."""

import argparse
from pathlib import Path

from mlaan.cli.arguments import Overrides
from mlaan.cli.evaluate import without_weights
from mlaan.cli.settings import load_kept
from mlaan.config import Config
from mlaan.errors import UserError
from mlaan.observe.incident import Incident
from mlaan.observe.words import aligned
from mlaan.replay import Look, plain, replay


def run(arguments: argparse.Namespace, overrides: Overrides) -> int:
    """Prints every task of the step and the first thing that is not finite; exit status 1 if all is finite here."""
    path = Path(arguments.path)
    if path.is_dir():
        kept = sorted(path.glob("incidents/*.pt"))
        which = f"name one of {', '.join(map(str, kept))}" if kept else "no step of it has been kept"
        raise UserError(f"{path} is a folder, and a single step is replayed: {which}")
    incident = Incident.load(path)
    config, changes = plain(_settings(incident.config, path, overrides))
    print(f"step {incident.step} of epoch {incident.epoch}, in the run: {incident.found}")
    if changes:
        print(f"runs with {', '.join(changes)}")
    result = replay(incident, config)
    print("\n".join(aligned([("task", "largest value", "not finite", "of"), *map(_row, result.looks)])))
    if result.first:
        print(f"\nfirst   {result.first}")
        return 0
    print("\nall is finite here: the fault does not come up on this device, or not without what was changed above")
    return 1


def _row(look: Look) -> tuple[str, ...]:
    return look.task, f"{look.largest:.4g}", f"{look.bad:,}", f"{look.count:,}"


def _settings(text: str, path: Path, overrides: Overrides) -> Config:
    for key, value in overrides:
        if key != "train.device":
            raise UserError(f"--{key} {value} cannot change a step that was taken: only train.device can")
    return without_weights(load_kept(text, path, overrides))
