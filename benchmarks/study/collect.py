"""From run folders to results: what was reached, and what a step costs by its plan."""

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.study.results import REFERENCE, Cost, DepthProbe, Results, Variant, ordered
from mlaan import checkpoint
from mlaan.build import build
from mlaan.cli.settings import load_config
from mlaan.config import Config, RunConfig, dumps
from mlaan.errors import UserError
from mlaan.run_folder import RunFolder
from mlaan.table.rows import Published, Row
from mlaan.table.runs import Run

_NAME = re.compile(r"(?P<stem>.+)-seed(?P<seed>\d+)")


def collect(folder: Path, configs: Path, earlier: Results | None, say: Callable[[str], None]) -> Results:
    """All finished runs in `folder`, by the configs in `configs` and the folders below it.

    Args:
        earlier: measured costs are taken over from it where the config still is the same.
        say: is told what is left out.

    Raises:
        UserError: no finished run of the reference, a run without its config or with other settings than it has now,
            or weights that are not those of the network that is described.
    """
    variants: list[Variant] = []
    costs: dict[str, Cost] = {}
    segments, checkpointed, setting = 0, None, {}
    for stem, runs in groupby(sorted(_runs(folder, configs), key=lambda run: run.row.file.stem), _stem):
        finished = [run for run in runs if _is_finished(run, say)]
        if not finished:
            continue
        first = finished[0]
        key = cost_key(first.row.config)
        if key not in costs:
            figures = _describe(first)
            costs[key] = _cost(figures, "this plan")
            if stem == REFERENCE:
                name = next(name for name in figures["plans"] if name.endswith("checkpointed segments"))
                segments, checkpointed = int(name.split()[1]), _cost(figures, name)
        if stem == REFERENCE:
            setting = _setting(finished)
        variants.append(_variant(finished, key, configs))
    if checkpointed is None:
        raise UserError(f"{folder} holds no finished run {REFERENCE}-seed0: all else is held against it")
    old = earlier.costs if earlier else {}
    costs = {key: replace(cost, measured=old[key].measured) if key in old else cost for key, cost in costs.items()}
    if earlier and earlier.segments == segments:
        checkpointed = replace(checkpointed, measured=earlier.checkpointed.measured)
    measured_on = earlier.measured_on if earlier else ""
    return Results(setting, measured_on, ordered(variants, costs), costs, segments, checkpointed)


def cost_key(config: Config) -> str:
    """Names what decides a step's cost: all settings but the run's length, seed and folder."""
    same = replace(config, train=replace(config.train, epochs=10**6, seed=0), run=RunConfig())
    return hashlib.sha256(dumps(same).encode()).hexdigest()[:12]


def configs_of(results: Results, configs: Path) -> dict[str, Config]:
    """The config behind every cost, by its key.

    Raises:
        UserError: a config has changed since its runs.
    """
    found = {}
    files = {path.stem: path for path in configs.rglob("*.toml")}
    for variant in results.variants:
        config = load_config(files[variant.stem], [])
        if cost_key(config) != variant.cost:
            raise UserError(
                f"{files[variant.stem]} is not what its runs were made with: give the folder of the new runs"
            )
        found.setdefault(variant.cost, config)
    return found


def label_of(file: Path) -> str:
    """The first line of a config, a comment.

    Raises:
        UserError: it is none.
    """
    first = file.read_text(encoding="utf-8").partition("\n")[0]
    if not first.startswith("# "):
        raise UserError(f"{file} begins with {first!r}: its first line must be '# ' and what the tables call it")
    return first[2:].strip()


def _runs(folder: Path, configs: Path) -> list[Run]:
    files = {path.stem: path for path in configs.rglob("*.toml")}
    runs = []
    for path in sorted(folder.iterdir()):
        if not (path.is_dir() and (found := _NAME.fullmatch(path.name))):
            continue
        stem = found["stem"]
        if stem not in files:
            raise UserError(f"{path} has no config {stem}.toml in {configs}: give --configs, or move the run away")
        row = Row(files[stem], label_of(files[stem]), load_config(files[stem], []), Published())
        runs.append(Run(row, int(found["seed"]), RunFolder(path)))
    return runs


def _stem(run: Run) -> str:
    return run.row.file.stem


def _is_finished(run: Run, say: Callable[[str], None]) -> bool:
    epochs = run.epochs()  # Run.state() also looks at the files' times, which a copied folder has lost
    if not epochs or epochs[-1]["epoch"] < run.row.config.train.epochs or not run.folder.last.exists():
        say(f"left out: {run.name} is not finished")
        return False
    run.require_same_settings()
    return True


def _describe(run: Run) -> dict[str, Any]:
    """The plan's figures, of a network whose auxiliary networks fit those that were trained."""
    parts = build(run.config)
    try:
        parts.engine.heads.load_state_dict(checkpoint.load(run.folder.last).engine["heads"])
    except RuntimeError:
        raise UserError(
            f"{run.folder.path} trained other auxiliary networks than {run.row.file} now has: train it anew"
        ) from None
    return parts.engine.describe(parts.train_batches.batch)


def _cost(figures: dict[str, Any], plan: str) -> Cost:
    mine, base, weights = figures["plans"][plan], figures["plans"]["end-to-end"], figures["weights"]
    own = plan == "this plan"
    return Cost(
        flops=mine["flops"],
        flops_ratio=mine["flops"] / base["flops"],
        trained=weights["backbone"] + (weights["heads"] if own else 0),
        twins=weights["twins"] if own else 0,
        predicted_bytes=mine["peak_activation_bytes"],
        predicted_ratio=mine["peak_activation_bytes"] / base["peak_activation_bytes"],
    )


def _variant(runs: list[Run], key: str, configs: Path) -> Variant:
    row, last = runs[0].row, runs[0].epochs()[-1]
    return Variant(
        stem=row.file.stem,
        label=row.label,
        group="" if row.file.parent == configs else row.file.parent.name,
        end_to_end=row.config.method.name == REFERENCE,
        epochs=last["epoch"],
        steps=last["step"],
        top1={str(run.seed): run.epochs()[-1]["test_top1"] for run in runs},
        cost=key,
        probe=_probe(runs),
    )


def _probe(runs: list[Run]) -> DepthProbe | None:
    """The seeds' probe.json in one; CKA only where all were compared to the reference of their own seed."""
    files = {run.seed: run.folder.path / "probe.json" for run in runs}
    found = {seed: json.loads(path.read_text(encoding="utf-8")) for seed, path in files.items() if path.exists()}
    if not found:
        return None
    depths = [[module["blocks"] for module in each["modules"]] for each in found.values()]
    if any(blocks != depths[0] for blocks in depths):
        raise UserError(f"the seeds of {runs[0].row.file.stem} were probed at other depths: probe them in one call")
    compared = [
        [row[i] for i, row in enumerate(each["against"]["cka"])]
        for seed, each in found.items()
        if each["against"] and each["against"]["run"] == f"{REFERENCE}-seed{seed}"
    ]
    return DepthProbe(
        blocks=tuple(depths[0]),
        top1=_means([[module["top1"] for module in each["modules"]] for each in found.values()]),
        cka=_means(compared) if len(compared) == len(found) else None,
        seeds=len(found),
    )


def _means(rows: list[list[float]]) -> tuple[float, ...]:
    return tuple(mean(column) for column in zip(*rows, strict=True))


def _setting(runs: list[Run]) -> dict[str, str]:
    """What the reference's runs share, in words, and where the first of them ran."""
    config, here = runs[0].row.config, runs[0].folder.read_environment()
    images = runs[0].epochs()[-1]["step"] // config.train.epochs * config.data.batch  # type: ignore[attr-defined]
    return {
        "network": config.model.name,
        "modules": str(config.partition.modules),
        "data": config.data.name,
        "images an epoch": f"{images:,}",
        "batch": str(config.data.batch),  # type: ignore[attr-defined]
        "epochs": str(config.train.epochs),
        "precision": config.train.precision,
        "seeds": ", ".join(str(run.seed) for run in runs),
        "trained on": f"{here['gpus'][0] if here['device'] != 'cpu' else here['cpu']}, torch {here['torch']}",
    }
