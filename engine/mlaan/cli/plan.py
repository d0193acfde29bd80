"""`mlaan plan`: what a training step does, before any is done."""

import argparse
import json

from mlaan.build import build
from mlaan.cli.arguments import Overrides
from mlaan.cli.settings import load_config
from mlaan.plan.report import as_text


def run(arguments: argparse.Namespace, overrides: Overrides) -> int:
    """Prints the plan as a table, or with --json as data."""
    parts = build(load_config(arguments.config, overrides))
    figures = parts.engine.describe(parts.train_batches.batch)
    print(json.dumps(figures, indent=2) if arguments.json else as_text(figures))
    return 0
