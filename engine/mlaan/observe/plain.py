"""Progress as lines of text, for logs and pipes."""

from typing import TextIO

from mlaan.observe.snapshot import Snapshot
from mlaan.observe.words import by_module, duration, kinds, loading, mebibytes, percent, scaling, spread

_MODULES = 8
"""Losses of one kind that a line shows; deeper networks show evenly spaced ones."""


class PlainDisplay:
    """One line per epoch, and one every half minute inside an epoch."""

    interval = 30.0

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def step(self, now: Snapshot) -> None:
        self._line(now, f"step {now.batch}/{now.batches}")

    def epoch(self, now: Snapshot) -> None:
        self._line(now, f"test {percent(now.test_top1)}, best {percent(now.best_top1)}")

    def say(self, line: str) -> None:
        print(line, file=self._stream, flush=True)

    def close(self) -> None:
        """Nothing to tidy up."""

    def _line(self, now: Snapshot, what: str) -> None:
        width = len(str(now.epochs))
        parts = [
            f"epoch {now.epoch:{width}}/{now.epochs}",
            what,
            f"loss {_losses(now.losses)}",
            f"{now.images_per_second:.0f} img/s",
            *loading(now.data_wait, now.left_out),
            mebibytes(now.memory_bytes),
            *scaling(now.skipped, now.scale),
            f"{duration(now.seconds_left)} left",
        ]
        self.say(" | ".join(parts))


def _losses(losses: dict[str, float]) -> str:
    """The losses by kind, from the first module to the last."""
    table = by_module(losses)
    words = []
    for kind in kinds(losses):
        values = [row[kind] for row in table.values() if kind in row]
        chosen = [f"{values[i]:.3f}" for i in spread(len(values), _MODULES)]
        words.append(f"{kind} {' '.join(chosen)}")
    return ", ".join(words)
