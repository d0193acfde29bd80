"""`mlaan train`: a new run, or one that goes on."""

import argparse
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from mlaan import checkpoint, report
from mlaan.build import Parts, build, choose_device
from mlaan.checkpoint import CHANGEABLE, Checkpoint
from mlaan.cli.arguments import Overrides
from mlaan.cli.evaluate import without_weights
from mlaan.cli.settings import load_config, load_kept
from mlaan.config import Config, dumps
from mlaan.engine import Engine
from mlaan.errors import StepMemoryError, UserError
from mlaan.fit import Fit, explain_failure, hold_to_limit, require_fit
from mlaan.observe.display import Display, choose_display
from mlaan.observe.environment import differences, environment
from mlaan.observe.finite import NotFinite
from mlaan.observe.incident import Rescue
from mlaan.observe.lasting import lasting_output
from mlaan.observe.metrics import MetricsLog
from mlaan.observe.recorder import Recorder
from mlaan.observe.state import TrainState
from mlaan.observe.stop import Stopped, StopRequest
from mlaan.observe.words import counted
from mlaan.run_folder import RunFolder
from mlaan.trainer import train


def run(arguments: argparse.Namespace, overrides: Overrides) -> int:
    """Trains, reports, and gives the exit status."""
    if arguments.resume is not None and arguments.config is not None:
        raise UserError("--resume takes the run's own settings: leave out --config")
    with lasting_output(), StopRequest(at_once=True) as stop:  # until the first step nothing can be lost
        try:
            if arguments.resume is None:
                return _begin(load_config(arguments.config, overrides), stop)
            return _go_on(RunFolder.open(Path(arguments.resume)), overrides, stop)
        except Stopped as end:
            print("stopped before the first step", file=sys.stderr)
            return end.exit_code


def _begin(config: Config, stop: StopRequest) -> int:
    parts, fit = _build(config)
    folder = RunFolder.create(config)
    with folder.locked() as note:
        if folder.holds_run():
            raise UserError(f"{folder.path} holds a run by now: give another --run.folder")
        return _train(folder, config, parts, None, [fit.note, note], fit, stop)


def _go_on(folder: RunFolder, overrides: Overrides, stop: StopRequest) -> int:
    with folder.locked() as note:
        config = load_config(folder.config, _changeable(overrides, folder))
        saved, path, skipped = checkpoint.load_first(folder.newest())
        # what an older version wrote lacks settings that came later: they had their defaults then
        saved = replace(saved, config=dumps(load_kept(saved.config, path, [])))
        checkpoint.require_same_run(saved, dumps(config), path)
        notes = [f"{line}: going on from {path}" for line in skipped]
        parts, fit = _build(without_weights(config), folder)
        return _train(folder, config, parts, saved, [fit.note, note, *notes], fit, stop)


def _changeable(overrides: Overrides, folder: RunFolder) -> Overrides:
    for key, text in overrides:
        if not key.startswith(CHANGEABLE) or key == "run.folder":
            raise UserError(
                f"--{key} {text} cannot change a run that goes on: leave it out, or start a new run with "
                f"`mlaan train --config {shlex.quote(str(folder.config))} --{key} {shlex.quote(text)}`"
            )
    return overrides


def _build(config: Config, resumed: RunFolder | None = None) -> tuple[Parts, Fit]:
    """The run's parts, if its step fits; of one that goes on with the images that it began with."""
    fit = require_fit(config, resumed=resumed and resumed.path)
    hold_to_limit(config, choose_device(config.train.device))
    return build(config, resumed.images if resumed and resumed.images.exists() else None), fit


def _train(
    folder: RunFolder,
    config: Config,
    parts: Parts,
    saved: Checkpoint | None,
    notes: Sequence[str],
    fit: Fit,
    stop: StopRequest,
) -> int:
    engine, train_batches = parts.engine, parts.train_batches
    state = TrainState(len(engine.loss_names), engine.device)
    if saved:
        _restore(saved, parts, state, folder)
        if state.epoch >= config.train.epochs:
            print(*filter(None, notes), sep="\n", end="\n" if any(notes) else "")
            print(
                f"all {state.epoch} epochs are trained already: to go on, add --train.epochs with more "
                "(the learning rate then follows the longer schedule)"
            )
            return _report(folder)
    folder.remove_leftovers()
    metrics = MetricsLog(folder.metrics, keep=saved.metrics_bytes if saved else 0)
    display = choose_display()
    train_batches.say = parts.test_batches.say = display.say
    resume = f"`mlaan train --resume {shlex.quote(str(folder.path))}`"
    recorder = Recorder(folder, config, engine, train_batches, state, metrics, display, stop)
    stop.at_once = False
    is_broken_off = False
    try:
        for line in (*_open(folder, config, engine, state, metrics), *parts.notes, *filter(None, notes)):
            display.say(line)
        if not saved:
            if parts.keep is not None:
                parts.keep(folder.images)
            recorder.save()
            recorder.finish()
        folder.write_config(config)  # makes it a run: from here on it can be resumed
        _train_to_the_end(folder, config, parts, state, recorder, display)
        recorder.finish()
    except (Stopped, KeyboardInterrupt) as end:
        is_broken_off = isinstance(end, KeyboardInterrupt)
        what = "stopped at once" if is_broken_off else "stopped"
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
        recorder.close(at_once=is_broken_off)
    return _report(folder)


def _train_to_the_end(
    folder: RunFolder, config: Config, parts: Parts, state: TrainState, recorder: Recorder, display: Display
) -> None:
    """Trains; where numbers stop being finite, from the newest checkpoint once more, looking at every step."""

    def go_back() -> None:
        recorder.wait()
        saved, _, _ = checkpoint.load_first(folder.newest())
        _restore(saved, parts, state, folder)
        recorder.go_back(saved.metrics_bytes)

    engine, _, _, dataset, *_ = parts
    normalisation = tuple(dataset.mean), tuple(dataset.std)
    rescue = Rescue(folder, dumps(config), config.run, normalisation, engine, state, go_back, display.say)
    while True:
        try:
            batches = parts.train_batches, parts.test_batches
            return train(engine, *batches, config.optim, config.train, state, recorder, rescue.step)
        except NotFinite as error:
            rescue.look_closely(error)


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
