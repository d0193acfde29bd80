"""Ties a training loop to its run folder: progress, metrics, checkpoints, and the wish to stop."""

import math
import time
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from mlaan import checkpoint
from mlaan.config import Config, dumps
from mlaan.engine import Engine, Evaluation
from mlaan.errors import UserError
from mlaan.observe.display import Display
from mlaan.observe.environment import peak_memory
from mlaan.observe.finite import NotFinite
from mlaan.observe.log_writer import LogWriter
from mlaan.observe.metrics import MetricsLog, TensorBoardLog
from mlaan.observe.saver import Saver, copied
from mlaan.observe.snapshot import Snapshot
from mlaan.observe.state import Batches, Means, TrainState, check_finite, check_weights
from mlaan.observe.stop import Stopped, StopRequest
from mlaan.run_folder import RunFolder

LOG_SECONDS = 10.0
"""Least time between two lines of type "step" in metrics.jsonl."""
RETRY_SECONDS = 60.0
"""From a checkpoint that could not be written to the next try."""


class _Every:
    """True at most once in `seconds`, and not before the first `seconds` are over."""

    def __init__(self, seconds: float) -> None:
        self._seconds, self._next = seconds, time.monotonic() + seconds

    def __call__(self, now: float) -> bool:
        if now < self._next:
            return False
        self._next = now + self._seconds
        return True


class _Mark(NamedTuple):
    """A moment, the images of the present epoch that were done by then, and the time spent waiting for batches."""

    seconds: float
    samples: int
    waited: float

    def rate(self, seconds: float, samples: int) -> float:
        """Images per second since this mark."""
        return (samples - self.samples) / max(seconds - self.seconds, 1e-9)

    def waiting(self, seconds: float, waited: float) -> float:
        """The share of the time since this mark that was spent waiting for batches."""
        return min(1.0, (waited - self.waited) / max(seconds - self.seconds, 1e-9))


class Recorder:
    """Watches one run. Most steps cost a look at the clock and at a flag; the device is not waited for.

    Args:
        folder: where the run is written.
        config: its resolved settings.
        engine, train_batches, state: what the checkpoints hold.
        metrics: the run's metrics.jsonl; the recorder closes it.
        display: shows the progress.
        stop: tells when a person wants the run to stop.
    """

    def __init__(
        self,
        folder: RunFolder,
        config: Config,
        engine: Engine,
        train_batches: Batches,
        state: TrainState,
        metrics: MetricsLog,
        display: Display,
        stop: StopRequest,
    ) -> None:
        self._folder, self._config, self._config_text = folder, config, dumps(config)
        self._engine, self._batches, self._state = engine, train_batches, state
        self._display, self._stop = display, stop
        tensorboard = None
        if config.run.tensorboard and TensorBoardLog.is_available():
            tensorboard = TensorBoardLog(folder.tensorboard, state.step)
        elif config.run.tensorboard:
            display.say("no TensorBoard logs, as the package 'tensorboard' is missing: pip install tensorboard")
        self._logs = LogWriter(metrics, tensorboard, display.say)
        self._saver = Saver(folder, config.run.keep, self._logs.flush, display.say)
        self._show = _Every(display.interval)
        self._log = _Every(LOG_SECONDS)
        self._save = _Every(config.run.checkpoint_minutes * 60)
        self._retry = _Every(RETRY_SECONDS)
        self._is_overdue = False
        self._start, self._seconds_before, self._steps_before = time.monotonic(), state.seconds, state.step
        self._epoch_mark = self._mark = self._here()
        self._epoch_rate = self._epoch_waiting = 0.0

    def stepped(self, state: TrainState) -> None:
        """After a step: shows, logs and saves what is due.

        Raises:
            Stopped: a person wants it.
            UserError: a loss is not finite.
        """
        now = time.monotonic()
        show, log, save = self._show(now), self._log(now), self._save(now)
        save = save or self._is_overdue or (self._saver.has_failed and self._retry(now))
        self._is_overdue = save and self._saver.is_busy  # then its turn comes at the first step after
        if not (show or log or (save and not self._is_overdue) or self._stop.signal_number):
            return
        means = state.meter.read()
        check_finite(self._engine, means, state)
        here = self._here()
        rate, waiting = self._mark.rate(here.seconds, here.samples), self._mark.waiting(here.seconds, here.waited)
        snapshot = self._snapshot(state.epoch + 1, state.batch, rate, waiting, means)
        self._mark = here
        if show:
            self._display.step(snapshot)
        if log:
            self._write("step", snapshot)
        if save and not self._is_overdue and not self._stop.signal_number:
            self.save()
        self._stop_if_asked()

    def trained(self, state: TrainState) -> None:
        """After the last step of an epoch, before its test."""
        here = self._here()
        self._epoch_rate = self._epoch_mark.rate(here.seconds, here.samples)
        self._epoch_waiting = self._epoch_mark.waiting(here.seconds, here.waited)

    def testing(self, batches: Iterable[Any]) -> Iterator[Any]:
        """The test batches; a wish to stop is granted between two of them."""
        for batch in batches:
            self._stop_if_asked()
            yield batch

    def finished(self, state: TrainState, means: Means, evaluation: Evaluation | None) -> None:
        """After an epoch and its test, if it had one: shows, logs and saves it; raises as `stepped` does."""
        if evaluation and not math.isfinite(evaluation.loss):
            raise NotFinite(
                f"the test loss is {evaluation.loss} after epoch {state.epoch}: lower optim.learning_rate "
                f"(this epoch's rate was {self._engine.learning_rate:.4g}) or set optim.warmup_epochs",
                state.step,
            )
        check_weights(self._engine, state)
        rate, waiting = self._epoch_rate, self._epoch_waiting
        snapshot = self._snapshot(state.epoch, len(self._batches), rate, waiting, means, evaluation)
        self._write("epoch", snapshot)
        self.save(is_best=evaluation is not None and state.best_epoch == state.epoch)
        self._display.epoch(snapshot)
        self._epoch_mark = self._mark = self._here()
        if self._stop.signal_number:
            self.finish()
            raise Stopped(self._stop.signal_number)

    def save(self, *, is_best: bool = False) -> None:
        """Begins to write a checkpoint of this moment, and best.pt if asked.

        Raises:
            NotFinite: a weight is not finite; nothing is written then.
        """
        check_weights(self._engine, self._state)
        self._state.seconds = self._seconds()
        content = checkpoint.Checkpoint(
            config=self._config_text,
            engine=copied(self._engine.state_dict()),
            loader=self._batches.state_dict(),
            progress=copied(self._state.state_dict()),
            random=checkpoint.random_state(self._engine.device),
            metrics_bytes=self._logs.length,
        )
        self._saver.start(content, self._state.step, is_best=is_best)

    def wait(self) -> None:
        """Until the last checkpoint is on the disk, or could not be written."""
        self._saver.wait()

    def finish(self) -> None:
        """Waits until the last checkpoint is on the disk.

        Raises:
            UserError: it cannot be written, tried twice; the message tells which one is the newest.
        """
        if self._saver.wait() is None:
            return
        self.save(is_best=self._state.best_epoch == self._state.epoch and not self._state.batch)
        if error := self._saver.wait():
            step = self._saver.saved_step
            again = "go on with --resume" if self._folder.holds_run() else "begin again"
            newest = f" from the newest checkpoint, of step {step}" if step >= 0 else ""
            raise UserError(f"{error}, then {again}{newest}")

    def go_back(self, metrics_bytes: int) -> None:
        """After state, engine and loader went back to a checkpoint: forgets what was logged behind it."""
        self._logs.go_back(metrics_bytes, self._state.step)
        self._seconds_before, self._steps_before = self._seconds(), self._state.step
        self._epoch_mark = self._mark = self._here()
        self._start = self._mark.seconds

    def close(self, *, at_once: bool = False) -> None:
        """Waits for what is being written, unless `at_once`; what is then cut short counts as never begun."""
        if not at_once:
            self._saver.wait()
            self._logs.close()
        self._display.close()

    def _stop_if_asked(self) -> None:
        if self._stop.signal_number:
            self.save()
            self.finish()
            raise Stopped(self._stop.signal_number)

    def _here(self) -> _Mark:
        return _Mark(time.monotonic(), self._state.meter.samples, self._batches.stats.waited)

    def _seconds(self) -> float:
        return self._seconds_before + time.monotonic() - self._start

    def _snapshot(
        self,
        epoch: int,
        batch: int,
        rate: float,
        waiting: float,
        means: Means,
        evaluation: Evaluation | None = None,
    ) -> Snapshot:
        state, names, predicts = self._state, self._engine.loss_names, self._engine.loss_predicts
        epochs, batches = self._config.train.epochs, len(self._batches)
        steps_here, scale = state.step - self._steps_before, self._engine.loss_scale
        pace = (time.monotonic() - self._start) / steps_here if steps_here else math.nan
        return Snapshot(
            epoch=epoch,
            epochs=epochs,
            batch=batch,
            batches=batches,
            step=state.step,
            seconds=self._seconds(),
            seconds_left=pace * (epochs * batches - state.step),
            learning_rate=self._engine.learning_rate,
            images_per_second=rate,
            data_wait=waiting,
            left_out=len(self._batches.stats.left_out),
            memory_bytes=peak_memory(self._engine.device),
            losses=dict(zip(names, means.losses, strict=True)),
            top1={n: t for n, t, gives in zip(names, means.top1, predicts, strict=True) if gives},
            test_loss=evaluation.loss if evaluation else math.nan,
            test_top1=evaluation.top1 if evaluation else math.nan,
            test_top5=evaluation.top5 if evaluation else math.nan,
            test_images=evaluation.samples if evaluation else 0,
            best_top1=state.best_top1 if state.best_epoch else math.nan,
            skipped=None if scale is None else int(scale.skipped.sum()),
            scale=None if scale is None else float(scale.scales.min()),
        )

    def _write(self, kind: str, now: Snapshot) -> None:
        record = {
            "type": kind,
            "epoch": now.epoch,
            "step": now.step,
            "seconds": round(now.seconds, 3),
            "learning_rate": now.learning_rate,
            "images_per_second": round(now.images_per_second, 2),
            "data_wait": round(now.data_wait, 4),
            "left_out": now.left_out,
            "memory_bytes": now.memory_bytes,
            "losses": now.losses,
            "top1": now.top1,
        }
        if (scale := self._engine.loss_scale) is not None:
            scales = dict(zip(self._engine.loss_names, scale.scales.tolist(), strict=True))
            record |= {"skipped_updates": scale.skipped.tolist(), "loss_scales": scales}
        if not math.isnan(now.test_top1):
            best = {"best_top1": self._state.best_top1, "best_epoch": self._state.best_epoch}
            record |= {"test_loss": now.test_loss, "test_top1": now.test_top1, **best}
            if not math.isnan(now.test_top5):
                record["test_top5"] = now.test_top5
            record["test_images"] = now.test_images
        self._logs.write(record)
