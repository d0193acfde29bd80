"""Tables of tiny runs, and what a run leaves in its folder, without any training."""

import json
from dataclasses import replace
from pathlib import Path

from mlaan.config import Config
from mlaan.run_folder import RunFolder
from mlaan.table.rows import Published, Row
from mlaan.table.runs import Run
from trainer.tiny import config

EPOCHS = 3


def row(folder: Path, name: str = "a", published: Published | None = None, **changes: str) -> Row:
    return Row(folder / f"{name}.toml", name, config(**changes), published or Published())


def run(folder: Path, row: Row, seed: int = 0) -> Run:
    return Run(row, seed, RunFolder(folder / f"{row.file.stem}-seed{seed}"))


def finish(run: Run, top1: float = 0.75, seconds: float = 30.0, epochs: int = EPOCHS) -> None:
    """Leaves what a run of that many epochs leaves."""
    write_metrics(run.folder.path, epochs, top1, seconds)
    run.folder.write_config(run.config)
    run.folder.last.write_bytes(b"")


def write_metrics(folder: Path, epochs: int, top1: float = 0.75, seconds: float = 30.0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    lines = [
        {
            "type": "epoch",
            "epoch": epoch,
            "seconds": seconds * epoch / epochs,
            "images_per_second": 100.0 + epoch,
            "memory_bytes": 7,
            "test_top1": top1 - 0.125 * (epochs - epoch),
            "best_top1": 0.96875,
        }
        for epoch in range(1, epochs + 1)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def with_batch(config: Config, batch: str) -> Config:
    return replace(config, data=replace(config.data, batch=int(batch)))  # type: ignore[call-arg]
