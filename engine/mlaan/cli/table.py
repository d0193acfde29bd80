"""`mlaan table`: rows of configs times seeds, ours beside the published."""

import argparse
import json
import sys
from pathlib import Path

from mlaan.cli.arguments import Overrides
from mlaan.cli.settings import load_config
from mlaan.errors import UserError
from mlaan.run_folder import RunFolder
from mlaan.table.rows import Row, expand, published_for
from mlaan.table.runner import train
from mlaan.table.runs import Run
from mlaan.table.show import as_data, as_text

_OWN = {"train.seed": "--seeds", "run.folder": "--folder"}
_SAME_RECIPE = ("train.device", "data.root", "data.workers", "data.download", "run.")


def run(arguments: argparse.Namespace, overrides: Overrides) -> int:
    """Trains what is missing and prints the table; 1 where a run failed, 128 + n after signal n."""
    for key, text in overrides:
        if key in _OWN:
            raise UserError(f"--{key} {text} does not fit `mlaan table`: use {_OWN[key]}")
    if arguments.jobs < 1:
        raise UserError(f"--jobs {arguments.jobs} must be at least 1")
    seeds = _seeds(arguments.seeds)
    rows = [_row(file, overrides) for file in expand(arguments.files)]
    changed = list(dict.fromkeys(key for key, _ in overrides if not key.startswith(_SAME_RECIPE)))
    if changed and not arguments.folder:
        raise UserError(
            f"--{changed[0]} makes other runs than the config files, which must not share their folder: "
            "add --folder with a folder of their own, such as --folder runs/look"
        )
    folder = Path(arguments.folder) if arguments.folder else Path("runs/table") / _name(rows)
    runs = [
        Run(row, seed, RunFolder(folder / f"{row.file.stem}-seed{seed}")) for seed in seeds for row in rows
    ]  # all rows of the first seed come first: an early look at the table shows every row
    status = 0
    if arguments.only_print:
        for each in runs:
            each.require_same_settings()
    else:
        outcome = train(folder, runs, overrides, arguments.jobs, _say)
        status = 128 + outcome.signal_number if outcome.signal_number else int(bool(outcome.failed))
    table = as_data(runs, changed)
    print(json.dumps(table, indent=2) if arguments.json else as_text(table, changed))
    if status > 1:
        _say(f"stopped: the same command goes on, in {folder}")
    return status


def _row(file: Path, overrides: Overrides) -> Row:
    label, published = published_for(file)
    return Row(file, label, load_config(file, overrides), published)


def _seeds(text: str) -> list[int]:
    """Raises UserError for anything but different whole numbers with commas between them."""
    words = text.split(",")
    if not all(word.strip().isdecimal() for word in words) or len({int(word) for word in words}) < len(words):
        raise UserError(f"--seeds {text} must be different whole numbers with commas between them, such as 0,1,2")
    return [int(word) for word in words]


def _name(rows: list[Row]) -> str:
    parents = {row.file.absolute().parent for row in rows}
    if len(parents) > 1:
        names = ", ".join(sorted(parent.name for parent in parents))
        raise UserError(f"the configs lie in several folders ({names}): say with --folder where their runs go")
    return parents.pop().name


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
