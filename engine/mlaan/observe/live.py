"""Progress as a live table on a terminal; needs the package rich."""

import math
from typing import TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from mlaan.observe.snapshot import Snapshot
from mlaan.observe.words import by_module, duration, kinds, loading, mebibytes, percent, scaling, spread

_OTHER_LINES = 9
"""Lines of the screen that are not modules: borders, titles, bars, the prompt."""


class LiveDisplay:
    """A table of the modules that is drawn anew a few times a second, below one line per finished epoch."""

    interval = 0.5

    def __init__(self, stream: TextIO) -> None:
        self._console = Console(file=stream)
        self._live = Live(console=self._console, auto_refresh=False, transient=True)
        self._live.start()

    def step(self, now: Snapshot) -> None:
        self._live.update(self._picture(now), refresh=True)

    def epoch(self, now: Snapshot) -> None:
        test = f"test loss {now.test_loss:.3f}  top-1 {percent(now.test_top1)}  best {percent(now.best_top1)}"
        self.say(f"epoch {now.epoch:>{len(str(now.epochs))}}/{now.epochs}  {test}  {duration(now.seconds)}")
        self.step(now)

    def say(self, line: str) -> None:
        self._console.print(line, highlight=False, markup=False)

    def close(self) -> None:
        self._live.stop()

    def _picture(self, now: Snapshot) -> Group:
        facts = [
            f"epoch {now.epoch}/{now.epochs}",
            f"step {now.batch}/{now.batches}",
            f"{now.images_per_second:.0f} img/s",
            f"rate {now.learning_rate:.4g}",
            *loading(now.data_wait, now.left_out),
            mebibytes(now.memory_bytes),
            *scaling(now.skipped, now.scale),
            f"{duration(now.seconds)} gone",
            f"{duration(now.seconds_left)} left",
        ]
        done = (now.epoch - 1) * now.batches + now.batch
        bar = ProgressBar(total=now.epochs * now.batches, completed=done, width=60)
        return Group(self._modules(now), Text("  ".join(facts), no_wrap=True, overflow="ellipsis"), bar)

    def _modules(self, now: Snapshot) -> Table:
        losses, top1 = by_module(now.losses), by_module(now.top1)
        names = kinds(now.losses)
        table = Table(title_justify="left")
        table.add_column("module", justify="right")
        for kind in names:
            table.add_column(f"{kind}\nloss", justify="right", style="cyan")
            table.add_column("\ntop-1", justify="right", style="green")
        modules = list(losses)
        shown = spread(len(modules), max(2, self._console.height - _OTHER_LINES))
        for module in (modules[i] for i in shown):
            cells = []
            for kind in names:
                has = kind in losses[module]
                cells += (
                    [f"{losses[module][kind]:.4f}", percent(top1.get(module, {}).get(kind, math.nan))]
                    if has
                    else ["", ""]
                )
            table.add_row(str(module), *cells)
        if len(shown) < len(modules):
            table.caption = f"{len(shown)} of {len(modules)} modules; the window is too low for all"
        return table
