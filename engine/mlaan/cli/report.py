"""`mlaan report`: the table and the picture of a run, again."""

import argparse
from pathlib import Path

from mlaan import report
from mlaan.cli.arguments import Overrides
from mlaan.run_folder import RunFolder


def run(arguments: argparse.Namespace, overrides: Overrides) -> int:
    """Prints the table and draws report.png."""
    folder = RunFolder.open(Path(arguments.path))
    print(report.summary(folder))
    print(f"{'picture':<10}  {report.draw(folder)}")
    return 0
