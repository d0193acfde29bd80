"""What a person sees of a running run, and where it is shown."""

import importlib.util
import sys
from typing import Protocol, TextIO

from mlaan.observe.plain import PlainDisplay
from mlaan.observe.snapshot import Snapshot


class Display(Protocol):
    """Shows snapshots. `interval` is the least time in seconds between two calls of `step`."""

    interval: float

    def step(self, now: Snapshot) -> None: ...
    def epoch(self, now: Snapshot) -> None: ...
    def say(self, line: str) -> None: ...
    def close(self) -> None: ...


def choose_display(to: TextIO | None = None) -> Display:
    """A live table on a terminal that has rich installed, plain lines everywhere else; on stdout by default."""
    stream = to if to is not None else sys.stdout
    if not stream.isatty():
        return PlainDisplay(stream)
    if importlib.util.find_spec("rich") is None:
        display = PlainDisplay(stream)
        display.say("plain lines, as the package 'rich' is missing; for a live table: pip install rich")
        return display
    from mlaan.observe.live import LiveDisplay

    return LiveDisplay(stream)
