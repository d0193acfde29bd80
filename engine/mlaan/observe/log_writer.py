"""Records on their way into a run's logs, written on a thread of its own: a full or slow disk never holds up a step."""

import threading
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

from mlaan.observe.metrics import MetricsLog, TensorBoardLog

MOST_STEPS = 1000
"""Lines of type "step" that may wait; further ones are dropped and counted. Other lines are never dropped."""

_RETRY_SECONDS = 5.0


class _Waiting(NamedTuple):
    line: bytes
    record: dict[str, Any]
    end: int
    """Length of metrics.jsonl with this line."""


class LogWriter:
    """Hands records to metrics.jsonl, and to TensorBoard if that is kept, in order.

    Args:
        metrics: the run's metrics.jsonl; the writer closes it.
        tensorboard: the same as events, or None; closed, too.
        say: is told what is lost, and when it is well again; from the other thread.
    """

    def __init__(self, metrics: MetricsLog, tensorboard: TensorBoardLog | None, say: Callable[[str], None]) -> None:
        self._metrics, self._tensorboard, self._say = metrics, tensorboard, say
        self._waiting: deque[_Waiting] = deque()
        self._changed = threading.Condition()
        self._fails = self._closing = self._is_writing = False
        self._back_to: int | None = None
        """A step: TensorBoard is still to hide the later ones."""
        self._written = self.length = metrics.length
        """Length in bytes of metrics.jsonl once all that was handed over is in it."""
        self.dropped = 0
        self._thread = threading.Thread(target=self._run, name="logs", daemon=True)
        self._thread.start()

    def write(self, record: dict[str, Any]) -> None:
        """Hands a record over; raises ValueError for one that is no JSON."""
        line = self._metrics.encode(record)
        with self._changed:
            if record["type"] == "step" and len(self._waiting) >= MOST_STEPS:
                self.dropped += 1
                return
            self.length += len(line)
            self._waiting.append(_Waiting(line, record, self.length))
            self._changed.notify_all()

    def flush(self, length: int) -> None:
        """Until metrics.jsonl is so long and on the disk, or cannot be written."""
        with self._changed:
            self._changed.wait_for(lambda: self._written >= length or self._fails)
        self._metrics.sync()

    def go_back(self, length: int, step: int) -> None:
        """Forgets every line behind that length; TensorBoard's events of steps after `step` go before its next line."""
        with self._changed:
            self._changed.wait_for(lambda: not self._is_writing)
            while self._waiting and self._waiting[-1].end > length:
                self._waiting.pop()
            self._written = min(length, self._written)
            self._metrics.cut(self._written)
            self.length = self._waiting[-1].end if self._waiting else self._written
            self._back_to = step if self._back_to is None else min(step, self._back_to)

    def close(self) -> None:
        """Writes what waits, with one more try if that fails, and says what is lost."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()
        lost = len(self._waiting) + self.dropped
        if lost:
            self._say(f"{self._metrics.path} lacks {lost} lines that could not be written")
        self._metrics.close()
        self._show(TensorBoardLog.close)

    def _run(self) -> None:
        while (due := self._next()) is not None:
            if isinstance(due, int):
                self._show(TensorBoardLog.go_back, due)
                continue
            is_last_try, failure = self._closing, ""
            try:
                self._metrics.append(due.line)
            except OSError as error:
                failure = error.strerror or str(error)
            with self._changed:
                self._is_writing = False
                was_failing, self._fails = self._fails, bool(failure)
                if not failure:
                    self._waiting.popleft()
                    self._written = due.end
                self._changed.notify_all()
                if failure and is_last_try:
                    return
                if failure and was_failing:
                    self._changed.wait_for(lambda: self._closing, _RETRY_SECONDS)
                    continue
            if failure:
                self._say(f"{self._metrics.path} cannot be written ({failure}): its lines wait")
                continue
            if was_failing:
                self._say(f"{self._metrics.path} is written again")
            self._show(TensorBoardLog.write, due.record)

    def _next(self) -> _Waiting | int | None:
        """The line to write next, or the step that TensorBoard goes back to first; None at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closing)
            step, self._back_to = self._back_to, None
            if step is not None or not self._waiting:
                return step
            self._is_writing = True
            return self._waiting[0]

    def _show(self, how: Callable[..., None], *what: Any) -> None:
        """Calls a method of TensorBoard's log, if that is still kept."""
        if self._tensorboard is None:
            return
        try:
            how(self._tensorboard, *what)
        except Exception as error:  # its own writer thread hands on whatever it met
            self._tensorboard = None
            self._say(f"the TensorBoard logs end here ({' '.join(str(error).split())}); metrics.jsonl has the rest")
