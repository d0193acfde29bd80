"""The run's numbers: metrics.jsonl, one JSON object a line, and the same as TensorBoard events.

Keys of every line: type ("step" or "epoch"), epoch (from 1), step, seconds, learning_rate, images_per_second,
memory_bytes, losses and top1 (by local loss, means over the epoch so far). A line of type "epoch" also has
test_loss, test_top1, best_top1, best_epoch, if the epoch was tested. Accuracies are from 0 to 1.
"""

import fcntl
import importlib.util
import json
import os
from pathlib import Path
from typing import Any

from mlaan.errors import UserError


class MetricsLog:
    """Appends lines to metrics.jsonl; each is in the file when `write` returns.

    Args:
        path: the file.
        keep: length in bytes up to which an earlier process's lines stay; later ones are cut off.

    Raises:
        UserError: another process writes the same file.
    """

    def __init__(self, path: Path, keep: int = 0) -> None:
        self._file = path.open("ab")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise UserError(f"another process is training in {path.parent}: wait for its end, or stop it") from None
        length = self._file.seek(0, os.SEEK_END)
        self.lost = max(0, keep - length)
        """Bytes of earlier lines that are missing."""
        self._file.truncate(min(keep, length))
        self._file.seek(0, os.SEEK_END)

    def write(self, record: dict[str, Any]) -> None:
        self._file.write(json.dumps(record, allow_nan=False).encode() + b"\n")
        self._file.flush()

    def sync(self) -> int:
        """The file's length in bytes, once all of it is on the disk."""
        os.fsync(self._file.fileno())
        return self._file.tell()

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


class TensorBoardLog:
    """Writes the lines of a `MetricsLog` as TensorBoard scalars; needs the package tensorboard.

    Args:
        folder: where the event files go.
        step: the step a resumed run goes on from: TensorBoard hides earlier events of later steps.
    """

    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=step + 1 if step else None)

    @staticmethod
    def is_available() -> bool:
        return importlib.util.find_spec("tensorboard") is not None

    def write(self, record: dict[str, Any]) -> None:
        step = record["step"]
        for group in ("losses", "top1", "loss_scales"):
            for name, value in record.get(group, {}).items():
                self._writer.add_scalar(f"{group}/{name}", value, step)
        for name in ("learning_rate", "images_per_second", "memory_bytes", "test_loss", "test_top1"):
            if name in record:
                self._writer.add_scalar(name, record[name], step)

    def close(self) -> None:
        self._writer.close()
