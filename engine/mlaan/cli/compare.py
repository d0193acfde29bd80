"""`mlaan compare`: local learning beside end-to-end on this machine, in time and memory."""

import argparse
import importlib.util
import json
import os
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # read once by torch: its profiler complains where there is no GPU

from mlaan.cli.arguments import Overrides
from mlaan.cli.settings import load_config
from mlaan.compare.candidates import choose_methods
from mlaan.compare.ground import Ground
from mlaan.compare.result import Comparison, as_data
from mlaan.compare.run import Measurement
from mlaan.compare.words import as_text, heading, verdict
from mlaan.config import Config, dumps
from mlaan.errors import UserError
from mlaan.observe.environment import environment
from mlaan.observe.stop import Stopped, StopRequest


def run(arguments: argparse.Namespace, overrides: Overrides) -> int:
    """Measures, prints and writes compare.json and compare.png; 128 + n after signal n, with what was measured."""
    if arguments.rounds < 1:
        raise UserError(f"--rounds {arguments.rounds} must be at least 1")
    config = load_config(arguments.config, overrides)
    names = _words(arguments.methods, "--methods", "dgl,mlaan")
    if arguments.methods == arguments.parser.get_default("methods") and config.method.name not in (
        *names,
        "end_to_end",
    ):
        names.append(config.method.name)
    methods, modules = choose_methods(names, config), _modules(arguments.modules)
    ground = Ground(config)
    folder = _folder(arguments.out)
    comparison = Comparison(_facts(config, ground, arguments.rounds), ground.batch, notes=ground.notes())
    _say(heading(comparison))
    status = 0
    with StopRequest() as stop:

        def check() -> None:
            if stop.signal_number:
                raise Stopped(stop.signal_number)

        try:
            Measurement(ground, comparison, arguments.rounds, _say, check).run(ground.candidates(methods, modules))
        except (Stopped, KeyboardInterrupt) as end:
            status = end.exit_code if isinstance(end, Stopped) else 130
            _say("stopped: what was measured so far follows")
    _report(comparison, folder, as_json=arguments.json)
    return status


def _facts(config: Config, ground: Ground, rounds: int) -> dict[str, Any]:
    """What stands in compare.json beside the figures."""
    return {
        "model": config.model.name,
        "input_shape": list(ground.shape),
        "batch": ground.batch,
        "precision": config.train.precision,
        "channels_last": ground.channels_last,
        "rounds": rounds,
        "machine": environment(ground.device) | {"kernels": ground.kernels},
        "config": tomllib.loads(dumps(config)),
    }


def _report(comparison: Comparison, folder: Path, *, as_json: bool) -> None:
    sentences = verdict(comparison)
    figures = as_data(comparison, sentences)
    print(json.dumps(figures, indent=2, allow_nan=False) if as_json else as_text(comparison, sentences))
    file, picture = folder / "compare.json", folder / "compare.png"
    file.write_text(json.dumps(figures, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    _say(f"{'figures':<10}  {file}")
    if len(comparison.timed()) < 2:
        _say("compare.png is not drawn: nothing beside end-to-end was timed")
        return
    if importlib.util.find_spec("matplotlib") is None:
        _say("compare.png needs the package 'matplotlib': pip install matplotlib")
        return
    from mlaan.compare.plot import plot

    plot(comparison, picture)
    _say(f"{'picture':<10}  {picture}")


def _modules(text: str) -> list[int]:
    words = _words(text, "--modules", "2,4,8")
    if not all(word.isdecimal() and int(word) > 1 for word in words):
        raise UserError(f"--modules {text} must be whole numbers from 2 on with commas between them, such as 2,4,8")
    return sorted({int(word) for word in words})


def _words(text: str, option: str, example: str) -> list[str]:
    words = [word.strip() for word in text.split(",")]
    if not all(words):
        raise UserError(f"{option} {text!r} must be words with commas between them, such as {example}")
    return words


def _folder(out: str | None) -> Path:
    """Made before anything is measured: minutes later would be late to hear that it cannot be."""
    folder = Path(out) if out else Path("runs") / f"compare-{time.strftime('%Y%m%d-%H%M%S')}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {folder} cannot be made: {error.strerror}: give another folder") from None
    return folder


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
