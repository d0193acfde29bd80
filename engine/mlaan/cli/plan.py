"""`mlaan plan`: what a training step does, before any is done; and which settings fit into a given memory."""

import argparse
import json
import os
from pathlib import Path
from typing import Any

from mlaan.build import choice_of, outline, with_kernels
from mlaan.cli import fitting
from mlaan.cli.arguments import Overrides
from mlaan.cli.machines import Chosen, choose_machine
from mlaan.cli.settings import load_config
from mlaan.config import Config, bytes_of, gib
from mlaan.engine import Engine
from mlaan.errors import UserError
from mlaan.observe.timeline import draw
from mlaan.plan.duration import task_time
from mlaan.plan.lanes import LanePlan, choose_lanes, simulate
from mlaan.plan.predict import levels
from mlaan.plan.report import as_text, explain

PICTURES = (".png", ".svg", ".pdf")
"""Endings of the pictures that --timeline draws."""


def run(arguments: argparse.Namespace, overrides: Overrides) -> int:
    """Prints the plan as a table, or with --json as data; with --memory, what was found to fit."""
    if arguments.out and not arguments.memory:
        raise UserError(f"--out {arguments.out} is for the settings that --memory finds: give --memory SIZE too")
    if arguments.timeline:
        _check_picture(Path(arguments.timeline))
    config = load_config(arguments.config, overrides)
    chosen = choose_machine(arguments.machine, config)
    figures: dict[str, Any] = {}
    lines: list[str] = []
    if arguments.memory:
        out = Path(arguments.out or "plan.toml")
        given = fitting.given_keys(arguments.config, overrides)
        found = fitting.find(config, chosen, bytes_of(arguments.memory, "--memory"), given)
        config = found.config
        fitting.write(found, out, arguments.memory)
        figures, lines = found.as_data() | {"out": str(out)}, fitting.as_text(found, out)
    planned = with_kernels(config, chosen.machine.kind, is_here=chosen.is_here)
    if not arguments.memory or arguments.explain or arguments.timeline:
        engine = outline(planned)
        batch = choice_of(planned).batch
        if not arguments.memory:
            figures = engine.describe(batch, chosen.machine)
            lines = [
                as_text(figures, alive=not arguments.explain),
                f"Times are those of {chosen.machine.name} ({chosen.why}).",
                *_limit(figures, config, chosen),
            ]
        if arguments.explain:
            said = explain(engine.planned(batch, chosen.machine))
            figures |= {"explanation": said.splitlines()}
            lines += ["", said]
        if arguments.timeline:
            _draw(engine, batch, config, chosen, Path(arguments.timeline))
            figures |= {"timeline": arguments.timeline}
            lines += ["", f"timeline  {arguments.timeline}"]
    print(json.dumps(figures, indent=2) if arguments.json else "\n".join(lines))
    return 0


def _limit(figures: dict[str, Any], config: Config, chosen: Chosen) -> list[str]:
    """A line where the plan takes more than there is."""
    peak, limit = figures["plans"]["this plan"]["peak_bytes"], config.memory.limit
    size = bytes_of(limit, "memory.limit") if limit else chosen.machine.memory
    if peak <= size:
        return []
    whose = f"memory.limit = {limit!r}" if limit else f"the {gib(size)} of {chosen.machine.name}"
    size_word = gib(size).replace(" ", "")
    return [f"It does not fit into {whose}: `mlaan plan` with --memory {size_word} looks for settings that do."]


def _check_picture(path: Path) -> None:
    """Refuses a picture that could not be written, before anything is computed for it."""
    if path.suffix.lower() not in PICTURES:
        raise UserError(f"--timeline {path}: a picture's name ends in {', '.join(PICTURES)}")
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise UserError(f"cannot write {path}: {path.parent} is no folder that can be written to")


def _draw(engine: Engine, batch: int, config: Config, chosen: Chosen, path: Path) -> None:
    """The step as the machine would run it: on one lane by the eager executor and on a CPU.

    The libraries' workspace counts as alive all the time, so that the picture's peak is the table's.
    """
    planned = engine.planned(batch, chosen.machine)
    plan, machine, fused = planned.plan, chosen.machine, planned.settings is not None
    costs = planned.costs(planned.site, planned.supervision, planned.parts(fused=fused), fused=fused)
    times = [task_time(plan, costs, step, machine, planned.precision) for step in plan.steps]
    one = config.train.executor == "eager" or machine.kind == "cpu"
    lanes = LanePlan(1, (0,) * len(times), ((),) * len(times)) if one else choose_lanes(plan, times)
    timeline = simulate(plan, lanes, times, [level + machine.workspace for level in levels(plan, costs)])
    title = f"{config.model.name} by {config.method.name}, batch {batch}, predicted for {machine.name}"
    draw(timeline, path, title, images=batch)
