"""The measurement: peaks one after another, then steps in interleaved rounds."""

import gc
import math
import time
from collections.abc import Callable, Iterable, Sequence

import torch

from mlaan.compare.candidates import PLAIN, Candidate, Refused
from mlaan.compare.contenders import EndToEnd, step_peak, trained_weights
from mlaan.compare.ground import Ground
from mlaan.compare.measure import Batch, in_rounds
from mlaan.compare.result import Comparison, Row
from mlaan.engine import Engine
from mlaan.errors import UserError
from mlaan.free_memory import free_memory
from mlaan.observe.stop import Stopped
from mlaan.observe.words import duration

TURN_SECONDS, MOST_STEPS = 0.1, 10
"""A contender's turn in a round takes so many steps that end-to-end's lasts about so long."""
SHARE = 0.5
"""Of the free memory, what contenders that wait for the rounds may hold in weights and momenta."""

OUT_OF_MEMORY = "the memory does not do"

Say = Callable[[str], None]


class Measurement:
    """Fills a Comparison, which is whole at every moment: whoever stops it keeps what is there.

    Args:
        rounds: measured ones.
        say: told what is being done.
        check: called between steps; what it raises ends the measurement.
    """

    def __init__(
        self, ground: Ground, comparison: Comparison, rounds: int, say: Say, check: Callable[[], None] = lambda: None
    ) -> None:
        self.ground, self.comparison, self.rounds, self.say, self.check = ground, comparison, rounds, say, check
        self.batches: list[Batch] = []
        self.ready: dict[str, Engine | EndToEnd] = {}
        self.estimates: dict[str, float] = {}
        self.room = SHARE * free_on(ground.device)

    def run(self, candidates: Sequence[Candidate | Refused]) -> None:
        """Measures all of them, end-to-end first.

        Raises:
            UserError: end-to-end itself does not fit into the memory.
        """
        start = time.monotonic()
        self.comparison.refused += [one for one in candidates if isinstance(one, Refused)]
        accepted = [one for one in candidates if isinstance(one, Candidate)]
        self.batches = self.ground.batches()
        for done, candidate in enumerate(accepted):
            self.check()
            self.say(f"memory {done + 1}/{len(accepted)}: {candidate.label}{self._left(done, len(accepted), start)}")
            self._measure_peak(candidate)
        self._measure_times()
        self.comparison.finished = True

    def _left(self, done: int, count: int, start: float) -> str:
        """How long all of it will still take, from what was done so far."""
        if not done:
            return ""
        peaks = (time.monotonic() - start) / done * (count - done)
        rounds = sum(self.estimates.values()) / done * count * self.rounds
        return f", about {duration(peaks + rounds)} left in all"

    def _measure_peak(self, candidate: Candidate) -> None:
        """A row with everything but times; the contender stays for the rounds if there is room."""
        reason = self._try(lambda: self._peak(candidate))
        if reason == OUT_OF_MEMORY and len(self.ready) > 1:
            self._drop([name for name in self.ready if name != PLAIN])  # perhaps it was their weights
            self.room = 0
            reason = self._try(lambda: self._peak(candidate))
        if reason is None:
            return
        if candidate.label == PLAIN:
            raise UserError(
                f"end-to-end, which all others are put beside, could not be measured: {reason}; lower data.batch"
            )
        self.comparison.refused.append(Refused(candidate.label, reason))
        self.say(f"  not measured: {reason}")

    def _peak(self, candidate: Candidate) -> None:
        made, segments = self.ground.make(candidate, self.batches[0])
        start = time.monotonic()
        made.step(*self.batches[0])  # momenta and chosen kernels are there before a peak is taken
        first = time.monotonic()
        peak = step_peak(made, self.batches[0])
        # the one may have chosen kernels, the other waited for a profiler
        self.estimates[candidate.label] = min(first - start, time.monotonic() - first)
        held, count = held_bytes(made), sum(weight.numel() for weight in trained_weights(made))
        self.comparison.add(Row(candidate, segments, peak, held, self.ground.flops(candidate, segments), count))
        if candidate.label == PLAIN or held <= self.room:
            self.room -= held
            self.ready[candidate.label] = made

    def _measure_times(self) -> None:
        repeats = max(1, min(MOST_STEPS, math.ceil(TURN_SECONDS / self.estimates[PLAIN])))
        rows = {row.candidate.label: row for row in self.comparison.rows}
        together = [rows[name] for name in self.ready]
        reason = self._try(lambda: self._time(together, together, repeats))
        if reason is not None:
            self.say(f"the rounds of all together ended early: {reason}")
        alone = [name for name, row in rows.items() if name != PLAIN and len(row.seconds) < self.rounds]
        if not alone:
            return
        why = reason or "the memory does not hold the weights of all"
        self.comparison.notes.append(
            f"These had rounds of their own, each beside end-to-end alone, as {why}: {'; '.join(alone)}."
        )
        self._drop([name for name in self.ready if name != PLAIN])
        for name in alone:
            self.check()
            reason = self._try(lambda row=rows[name]: self._time_alone(row, repeats))
            if reason is not None:
                self.comparison.refused.append(Refused(f"{name}: its time", reason))
            self._drop([name])

    def _time_alone(self, row: Row, repeats: int) -> None:
        plain = self.comparison.rows[0]
        row.seconds, row.reference = [], []
        made, _ = self.ground.make(row.candidate, self.batches[0], row.segments)
        made.step(*self.batches[0])
        self.ready[row.candidate.label] = made
        self._time([plain, row], [row] if plain.seconds else [plain, row], repeats)

    def _time(self, rows: Sequence[Row], entered: Sequence[Row], repeats: int) -> None:
        """Rounds of these rows' contenders, end-to-end first; a round is entered as soon as it is over."""
        steps = {row.candidate.label: self.ready[row.candidate.label].step for row in rows}
        who = f"{len(rows)} contenders" if len(rows) > 2 else " and ".join(steps)
        expected = repeats * self.rounds * sum(self.estimates[name] for name in steps)
        self.say(f"time: {self.rounds} rounds of {who}, about {duration(expected)}")
        start = time.monotonic()
        found = in_rounds(steps, self.batches, self.rounds, 0, repeats, self.check)
        for done, seconds in enumerate(found, start=1):
            for row in entered:
                row.seconds.append(seconds[row.candidate.label])
                row.reference.append(seconds[PLAIN])
            left = (time.monotonic() - start) / done * (self.rounds - done)
            self.say(f"time: round {done}/{self.rounds} of {who}, about {duration(left)} left")

    def _try(self, do: Callable[[], None]) -> str | None:
        """None if it went well, else the reason in one line: one contender must not take the others with it."""
        try:
            do()
            return None
        except Stopped:
            raise
        except UserError as error:
            reason = str(error)
        except Exception as error:
            reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
                reason = OUT_OF_MEMORY
        self._collect()  # here: the exception's frames held the tensors
        return reason

    def _drop(self, names: Iterable[str]) -> None:
        for name in names:
            self.ready.pop(name, None)
        self._collect()

    def _collect(self) -> None:
        gc.collect()
        if self.ground.device.type == "cuda":
            torch.cuda.empty_cache()


def held_bytes(contender: Engine | EndToEnd) -> int:
    """Bytes of a contender's weights, twins, buffers and momenta."""
    nets = [contender.backbone.net, *([contender.heads] if isinstance(contender, Engine) else [])]
    tensors = {id(tensor): tensor for net in nets for tensor in (*net.parameters(), *net.buffers())}
    return sum(tensor.nbytes for tensor in (*tensors.values(), *trained_weights(contender)))


def free_on(device: torch.device) -> float:
    """Bytes that are free on the device, for this process; 4 GiB where nobody knows."""
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_memory()
    return free if math.isfinite(free) else 4 * 2**30
