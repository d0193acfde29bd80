"""`mlaan plan`: what a training step does, before any is done."""

import argparse
import json

from mlaan.build import outline
from mlaan.cli.arguments import Overrides
from mlaan.cli.settings import load_config
from mlaan.data.source import ImageSource
from mlaan.plan.report import as_text


def run(arguments: argparse.Namespace, overrides: Overrides) -> int:
    """Prints the plan as a table, or with --json as data."""
    config = load_config(arguments.config, overrides)
    assert isinstance(config.data, ImageSource)
    figures = outline(config).describe(config.data.batch)
    print(json.dumps(figures, indent=2) if arguments.json else as_text(figures))
    return 0
