"""`mlaan train`: a new run, or one that goes on."""

import argparse
import shlex
from collections.abc import Iterator
from pathlib import Path

import torch

from mlaan import checkpoint, report
from mlaan.build import Parts, build, choose_device
from mlaan.checkpoint import CHANGEABLE, Checkpoint
from mlaan.cli.arguments import Overrides
from mlaan.cli.evaluate import without_weights
from mlaan.cli.settings import load_config
from mlaan.config import Config, dumps
from mlaan.engine import Engine
from mlaan.errors import StepMemoryError, UserError
from mlaan.fit import Fit, explain_failure, hold_to_limit, require_fit
from mlaan.observe.display import choose_display
from mlaan.observe.environment import differences, environment
from mlaan.observe.metrics import MetricsLog
from mlaan.observe.recorder import Recorder
from mlaan.observe.state import TrainState
from mlaan.observe.stop import Stopped, StopRequest
from mlaan.observe.words import counted
from mlaan.run_folder import RunFolder
from mlaan.trainer import train


def run(arguments: argparse.Namespace, overrides: Overrides) -> int:
    """Trains, reports, and gives the exit status."""
    if arguments.resume is None:
        config = load_config(arguments.config, overrides)
        parts, fit = _build(config, None)
        return _train(RunFolder.create(config), config, parts, None, fit)
    if arguments.config is not None:
        raise UserError("--resume takes the run's own settings: leave out --config")
    folder = RunFolder.open(Path(arguments.resume))
    config = load_config(folder.config, _changeable(overrides, folder))
    saved = checkpoint.load(folder.last)
    checkpoint.require_same_run(saved, dumps(config), folder.last)
    parts, fit = _build(without_weights(config), folder.path)
    return _train(folder, config, parts, saved, fit)


def _changeable(overrides: Overrides, folder: RunFolder) -> Overrides:
    for key, text in overrides:
        if not key.startswith(CHANGEABLE) or key == "run.folder":
            raise UserError(
                f"--{key} {text} cannot change a run that goes on: leave it out, or start a new run with "
                f"`mlaan train --config {shlex.quote(str(folder.config))} --{key} {shlex.quote(text)}`"
            )
    return overrides


def _build(config: Config, resumed: Path | None) -> tuple[Parts, Fit]:
    """The run's parts, if its step fits."""
    fit = require_fit(config, resumed=resumed)
    hold_to_limit(config, choose_device(config.train.device))
    return build(config), fit


def _train(folder: RunFolder, config: Config, parts: Parts, saved: Checkpoint | None, fit: Fit) -> int:
    engine, train_batches, test_batches, _ = parts
    state = TrainState(len(engine.loss_names), engine.device)
    if saved:
        _restore(saved, parts, state, folder)
        if state.epoch >= config.train.epochs:
            print(f"all {state.epoch} epochs are trained already: to go on, add --train.epochs with more")
            return _report(folder)
    metrics = MetricsLog(folder.metrics, keep=saved.metrics_bytes if saved else 0)
    folder.remove_leftovers()  # safe: the lock on metrics.jsonl says that nobody else writes here
    display = choose_display()
    resume = f"`mlaan train --resume {shlex.quote(str(folder.path))}`"
    with StopRequest() as stop:
        recorder = Recorder(folder, config, engine, train_batches, state, metrics, display, stop)
        try:
            for line in (*_open(folder, config, engine, state, metrics), *([fit.note] if fit.note else [])):
                display.say(line)
            if not saved:
                recorder.save()
            folder.write_config(config)  # makes it a run: from here on it can be resumed
            train(engine, train_batches, test_batches, config.optim, config.train, state, recorder)
        except (Stopped, KeyboardInterrupt) as end:
            what = "stopped" if isinstance(end, Stopped) else "stopped at once"
            display.say(f"{what} in epoch {state.epoch + 1}, step {state.step}: go on with {resume}")
            return end.exit_code if isinstance(end, Stopped) else 130
        except StepMemoryError as error:
            raise explain_failure(error, config, engine, fit.memory, folder.path, resumed=saved is not None) from None
        except torch.OutOfMemoryError:
            raise UserError(
                "the GPU's memory does not do: lower data.batch, or set memory.schedule = 'lean', or "
                "memory.recompute = 'fused' or 'once'"
            ) from None
        finally:
            recorder.close()
    return _report(folder)


def _restore(saved: Checkpoint, parts: Parts, state: TrainState, folder: RunFolder) -> None:
    try:
        parts.engine.load_state_dict(saved.engine)
        parts.train_batches.load_state_dict(saved.loader)
    except UserError as error:
        raise UserError(f"{folder.last} does not fit this run: {error}") from None
    state.load_state_dict(saved.progress)
    checkpoint.set_random_state(saved.random, parts.engine.device)


def _open(folder: RunFolder, config: Config, engine: Engine, state: TrainState, metrics: MetricsLog) -> Iterator[str]:
    """Records where the run runs, and gives the lines to say about it."""
    here = environment(engine.device) | {"kernels": engine.kernels}
    device = f"{engine.device} with Triton kernels" if engine.kernels == "triton" else f"{engine.device}"
    what = f"{config.model.name} by {config.method.name} on {config.data.name}"
    if config.train.compile == "modules":
        yield "torch.compile: the first step takes minutes, and so does the first of each other batch size"
    if not state.step:
        folder.write_environment(here)
        yield f"{what}, {counted(config.train.epochs, 'epoch')} on {device}, into {folder.path}"
        return
    yield f"{what}, on {device}, from epoch {state.epoch + 1}, step {state.step} of {folder.path}"
    for difference in differences(folder.read_environment(), here):
        yield f"the last bits may come out otherwise than in one go: {difference}"
    if metrics.lost:
        yield f"metrics.jsonl lacks {metrics.lost} bytes that it had at the checkpoint: there is a gap in it"


def _report(folder: RunFolder) -> int:
    print(f"\n{report.summary(folder)}")
    try:
        print(f"{'picture':<10}  {report.draw(folder)}")
    except UserError as missing:
        print(missing)
    return 0
