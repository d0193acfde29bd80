"""`mlaan profile`: where a training step's time and memory go, task by task."""

import argparse
import json
import time
import tomllib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mlaan import data, models
from mlaan.build import choose_device
from mlaan.cli.arguments import Overrides
from mlaan.cli.settings import load_config
from mlaan.config import Config, dumps
from mlaan.data.source import ImageSource
from mlaan.engine import Engine
from mlaan.errors import StepMemoryError, UserError
from mlaan.models.cost import Device
from mlaan.observe.environment import environment
from mlaan.observe.profiling import Profile, measure
from mlaan.observe.timeline import draw
from mlaan.observe.words import aligned, counted, percent
from mlaan.plan.costs import combine, measure_parts
from mlaan.plan.predict import Prediction, predict
from mlaan.plan.timeline import Span, chrome_trace

_LONGEST = 10


def run(arguments: argparse.Namespace, overrides: Overrides) -> int:
    """Measures, prints the tables, and writes profile.png, trace.json and profile.json."""
    if arguments.steps < 1:
        raise UserError(f"--steps {arguments.steps} must be at least 1")
    config = load_config(arguments.config, overrides)
    folder = _folder(arguments.out)
    try:
        engine, images, labels = _prepare(config)
        profile = measure(engine, images, labels, steps=arguments.steps)
    except (StepMemoryError, torch.OutOfMemoryError) as error:
        where = f" in {error.task}" if isinstance(error, StepMemoryError) else ""
        raise UserError(
            f"the memory does not do{where}: lower data.batch, or set memory.schedule = 'lean', or "
            "memory.recompute = 'fused' or 'once'"
        ) from None
    figures = _figures(config, engine, profile, images)
    title = f"{_words(config)}, batch {len(images)}, on {engine.device}"
    print(f"{title}: the median of {counted(len(profile.steps), 'step')}\n")
    print(as_text(figures))
    _write(folder / "profile.json", figures)
    _write(folder / "trace.json", chrome_trace(profile.steps[profile.median], title))
    print(f"{'figures':<8}  {folder / 'profile.json'}\n{'trace':<8}  {folder / 'trace.json'}, for ui.perfetto.dev")
    try:
        bare = f"{1000 * profile.bare_seconds:.1f} ms a step without the profiler"
        draw(profile.steps[profile.median], folder / "profile.png", f"{title}; {bare}", images=len(images))
        print(f"{'picture':<8}  {folder / 'profile.png'}")
    except UserError as missing:
        print(missing)
    return 0


def as_text(figures: dict[str, Any]) -> str:
    """What profile.json holds, as tables: milliseconds by module and kind of task, the longest tasks, the step."""
    rows, tasks = figures["tasks"], figures["longest"]
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    modules = sorted({row["module"] for row in rows})
    cells = {(row["module"], row["kind"]): row for row in rows}
    whole = sum(row["ms"] for row in rows)

    def add(what: str, module: int | None = None, kind: str | None = None) -> float:
        return sum(row[what] for row in rows if module in (None, row["module"]) and kind in (None, row["kind"]))

    table = [["module", *kinds, "all", "share", "calls"]]
    for m in modules:
        line = [f"{cells[m, kind]['ms']:.2f}" if (m, kind) in cells else "" for kind in kinds]
        ms = add("ms", m)
        table.append([str(m), *line, f"{ms:.2f}", percent(ms / whole), str(add("calls", m))])
    sums = [add("ms", kind=kind) for kind in kinds]
    table.append(["all", *(f"{ms:.2f}" for ms in sums), f"{whole:.2f}", percent(1.0), str(add("calls"))])
    table.append(["share", *(percent(ms / whole) for ms in sums), percent(1.0), "", ""])
    table.append(["calls", *(str(add("calls", kind=kind)) for kind in kinds), str(add("calls")), "", ""])
    longest = [["ms", "share", "lane"], *([f"{t['ms']:.2f}", percent(t["share"]), str(t["lane"])] for t in tasks)]
    names = ["task", *(task["name"] for task in tasks)]
    step, memory = figures["step"], figures["memory"]
    where = f" in {memory['peak_task']}" if memory["peak_task"] else ""
    lines = [
        "ms of a step, by local module and kind of task",
        *aligned(table),
        "",
        f"the {counted(len(tasks), 'task')} that took longest",
        *(f"{line}  {name}" for line, name in zip(aligned(longest), names, strict=True)),
        "",
        f"step      {step['profiled_ms']:.1f} ms with the profiler, {step['ms']:.1f} ms without, "
        f"{step['images_per_second']:.1f} img/s",
        f"lanes     {len(step['busy_ms'])}, overlap {percent(step['overlap'])}",
        f"memory    {_mib(memory['peak'])} at the peak{where}: {_mib(memory['before'])} before the step "
        f"(weights, optimizer, batch), {_mib(memory['by_step'])} by the step",
        f"          predicted by the step: {_mib(memory['predicted_by_step'])}, in {memory['predicted_task']}",
    ]
    return "\n".join(lines)


def _prepare(config: Config) -> tuple[Engine, Tensor, Tensor]:
    """The engine that `mlaan train` would build, with weights drawn at random, and a batch of random images."""
    assert isinstance(config.data, ImageSource)
    device, facts = choose_device(config.train.device), data.facts(config.data)
    channels, *size = facts.image_shape
    torch.manual_seed(config.train.seed)
    backbone = models.build(config.model.name, facts.classes, channels, size)
    backbone.net.to(device)
    unknown = (0.5,) * channels  # random images have no other
    engine = Engine.from_config(
        backbone,
        config.method,
        config.partition,
        config.memory,
        config.optim,
        facts.image_shape,
        train=config.train,
        normalisation=(facts.mean or unknown, facts.std or unknown),
    )
    images = torch.randn(config.data.batch, *facts.image_shape)
    labels = torch.randint(facts.classes, (config.data.batch,))
    return engine, *engine.batch_check(images, labels, training=True)


def _figures(config: Config, engine: Engine, profile: Profile, images: Tensor) -> dict[str, Any]:
    """Everything that is told, as plain data: milliseconds, bytes, shares from 0 to 1, of the median step."""
    timeline = profile.steps[profile.median]
    whole = sum(span.seconds for span in timeline.spans)
    groups: dict[tuple[int, str], list[Span]] = {}
    for span in timeline.spans:
        groups.setdefault((span.module, span.kind), []).append(span)
    tasks = []
    for (module, kind), spans in groups.items():
        seconds = sum(span.seconds for span in spans)
        row = {"module": module, "kind": kind, "ms": 1000 * seconds, "share": seconds / whole}
        tasks.append({**row, "calls": _calls(spans)})
    longest = sorted(timeline.spans, key=lambda span: -span.seconds)[:_LONGEST]
    at, most = timeline.peak
    predicted = _predict(engine, len(images))
    return {
        "step": {
            "ms": 1000 * profile.bare_seconds,
            "images_per_second": len(images) / profile.bare_seconds,
            "profiled_ms": 1000 * profile.seconds[profile.median],
            "all_profiled_ms": [1000 * seconds for seconds in profile.seconds],
            "busy_ms": {str(lane): 1000 * seconds for lane, seconds in timeline.busy.items()},
            "overlap": timeline.overlap,
        },
        "tasks": tasks,
        "longest": [
            {"name": s.name, "lane": s.lane, "ms": 1000 * s.seconds, "share": s.seconds / whole} for s in longest
        ],
        "memory": {
            "peak": most,
            "peak_task": ", ".join(span.name for span in timeline.spans if span.start <= at < span.end),
            "before": profile.base_bytes,
            "by_step": most - profile.base_bytes,
            "predicted_by_step": predicted.step_bytes,
            "predicted_task": str(predicted.peak_task),
        },
        "environment": environment(engine.device) | {"kernels": engine.kernels},
        "config": tomllib.loads(dumps(config)),
    }


def _predict(engine: Engine, batch: int) -> Prediction:
    device: Device = "cuda" if engine.device.type == "cuda" else "cpu"
    shape, dtype, settings = engine.input_shape, engine.dtype, engine.settings
    parts = measure_parts(engine.backbone, shape, batch, dtype, settings, device=device)
    images, fused = (batch, *shape), settings is not None
    costs = combine(parts, engine.partition, engine.supervision, images, dtype, fused=fused, device=device)
    return predict(engine.plan, costs)


def _calls(spans: Sequence[Span]) -> int:
    """How many tasks there are; one that works on several lanes has a span on each."""
    counts = Counter((span.name, span.lane) for span in spans)
    return sum(max(n for (name, _), n in counts.items() if name == one) for one in {span.name for span in spans})


def _words(config: Config) -> str:
    modules = config.partition.modules
    cut = "one piece" if modules == 1 else f"{modules} modules"
    return f"{config.model.name} in {cut} by {config.method.name} on {config.data.name}"


def _folder(out: str | None) -> Path:
    folder = Path(out or f"runs/profile-{time.strftime('%Y%m%d-%H%M%S')}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {folder}: {error.strerror}: give another --out") from None
    return folder


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _mib(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"
