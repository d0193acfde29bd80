"""The run's numbers: metrics.jsonl, one JSON object a line, and the same as TensorBoard events.

Keys of every line: type ("step" or "epoch"), epoch (from 1), step, seconds, learning_rate, images_per_second,
data_wait (share of the time since the last line, 0 to 1, that steps waited for images), left_out (images that could not
be read), memory_bytes, losses and top1 (by local loss, means over the epoch so far). A line of type "epoch" also has
test_loss, test_top1, test_top5 (of more than five classes), test_images (that could be read), best_top1, best_epoch, if
the epoch was tested. Accuracies are from 0 to 1.
"""

import importlib.util
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlaan.errors import UserError

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class MetricsLog:
    """Appends lines to metrics.jsonl; each is in the file when `append` returns.

    Args:
        path: the file.
        keep: length in bytes up to which an earlier process's lines stay; later ones are cut off.
    """

    def __init__(self, path: Path, keep: int = 0) -> None:
        self.path = path
        self._file = path.open("ab", buffering=0)
        there = self._file.seek(0, os.SEEK_END)
        whole = keep if keep <= there else path.read_bytes().rfind(b"\n") + 1  # no line behind half of one
        self.lost = keep - whole
        """Bytes of earlier lines that are missing."""
        self.cut(whole)

    @staticmethod
    def encode(record: dict[str, Any]) -> bytes:
        """A record as a line; raises ValueError where it holds nan or infinity."""
        return json.dumps(record, allow_nan=False).encode() + b"\n"

    def append(self, line: bytes) -> None:
        """Raises OSError where it cannot be written; the file then ends with the line before."""
        done = 0
        try:
            while done < len(line):
                done += self._file.write(line[done:])
        except OSError:
            self._file.truncate(self.length)
            raise
        self.length += len(line)

    def cut(self, length: int) -> None:
        """Forgets what is behind that length."""
        self._file.truncate(length)
        self.length = length

    def sync(self) -> None:
        """Until all of it is on the disk, as far as the disk takes it."""
        with suppress(OSError):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def read_epochs(path: Path) -> list[dict[str, Any]]:
    """The epoch lines of a metrics.jsonl, in order. A last line that was cut short is left out.

    Raises:
        UserError: no such file, or a line that is not JSON.
    """
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}: give the folder of a run") from None
    try:
        records = [json.loads(line) for line in lines]
    except ValueError as error:
        raise UserError(f"{path} has a line that is not JSON: {error}") from None
    return [record for record in records if record["type"] == "epoch"]


_SCALARS = (
    "learning_rate",
    "images_per_second",
    "data_wait",
    "memory_bytes",
    "test_loss",
    "test_top1",
    "test_top5",
)


class TensorBoardLog:
    """Writes the lines of a `MetricsLog` as TensorBoard scalars, from the first one on; needs the package tensorboard.

    Args:
        folder: where the event files go.
        step: the step that the run goes on from: TensorBoard hides what an earlier process wrote of later ones.
    """

    def __init__(self, folder: Path, step: int) -> None:
        self._folder, self._step = folder, step
        self._writer: SummaryWriter | None = None

    @staticmethod
    def is_available() -> bool:
        return importlib.util.find_spec("tensorboard") is not None

    def write(self, record: dict[str, Any]) -> None:
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self._folder), purge_step=self._step + 1)
        step = record["step"]
        for group in ("losses", "top1", "loss_scales"):
            for name, value in record.get(group, {}).items():
                self._writer.add_scalar(f"{group}/{name}", value, step)
        for name in _SCALARS:
            if name in record:
                self._writer.add_scalar(name, record[name], step)

    def go_back(self, step: int) -> None:
        """Hides what was written of later steps.

        It is what `purge_step` does, but inside the same file: of two files of one second either may be read first.
        """
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # type: ignore[attr-defined]

        if self._writer is None:
            self._step = min(step, self._step)
            return
        assert self._writer.file_writer is not None
        self._writer.file_writer.add_event(Event(step=step + 1, session_log=SessionLog(status=SessionLog.START)))

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
