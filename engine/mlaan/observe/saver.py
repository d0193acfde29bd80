"""Checkpoints written on a thread of their own, while the run goes on."""

import threading
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from mlaan import checkpoint
from mlaan.atomic import replace_by_copy
from mlaan.checkpoint import Checkpoint
from mlaan.errors import UserError
from mlaan.run_folder import RunFolder


def copied(value: Any) -> Any:
    """Nested values as they are now, whatever later steps do to the tensors in them.

    Tensors of a GPU are copied into pinned memory, in the order of its stream: nobody waits, and the copies hold their
    values once the device has come that far.
    """
    if isinstance(value, Tensor):
        if value.device.type != "cuda":
            return value.detach().clone()
        return torch.empty_like(value, device="cpu", pin_memory=True).copy_(value.detach(), non_blocking=True)
    if isinstance(value, Mapping):
        return {key: copied(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(copied(item) for item in value)
    return value


class Saver:
    """Writes one checkpoint at a time.

    Args:
        folder: where to.
        keep: how many of the newest stay.
        flush: called before a checkpoint is written, with its `metrics_bytes`; returns when so much is on the disk.
        say: is told when a checkpoint cannot be written; from the other thread.
    """

    def __init__(self, folder: RunFolder, keep: int, flush: Callable[[int], None], say: Callable[[str], None]) -> None:
        self._folder, self._keep, self._flush, self._say = folder, keep, flush, say
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._owed: Checkpoint | None = None
        """The best epoch's, which could not be written: best.pt becomes it before anything else."""
        self.saved_step = -1
        """The step of the newest checkpoint that this process wrote; -1 before."""

    @property
    def is_busy(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    @property
    def has_failed(self) -> bool:
        """Whether the last checkpoint could not be written."""
        return isinstance(self._failure, UserError)

    def start(self, content: Checkpoint, step: int, *, is_best: bool = False) -> None:
        """Begins to write a checkpoint of `copied` values, once the one before it is done.

        last.pt, and best.pt if asked, become names of it.
        """
        self.wait()
        event = None
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            event = torch.cuda.Event()
            event.record()
        arguments = (content, step, is_best, event)
        self._thread = threading.Thread(target=self._run, args=arguments, name="checkpoint", daemon=True)
        self._thread.start()

    def wait(self) -> UserError | None:
        """Until nothing is being written; what kept the last checkpoint from being written, if something did."""
        if self._thread is not None:
            self._thread.join()
        if self._failure is not None and not isinstance(self._failure, UserError):
            raise self._failure
        return self._failure

    def _run(self, content: Checkpoint, step: int, is_best: bool, event: torch.cuda.Event | None) -> None:
        try:
            if event is not None:
                event.synchronize()
            self._flush(content.metrics_bytes)
            self._write(content, step, is_best)
            self.saved_step, self._failure = step, None
        except UserError as error:
            self._failure = error
            self._owed = content if is_best else self._owed
            self._say(f"{error} (the run goes on, the checkpoints before it are whole, and it is tried again)")
        except BaseException as error:
            self._failure = error

    def _write(self, content: Checkpoint, step: int, is_best: bool) -> None:
        """best.pt changes first: a process that dies then leaves a state from which that epoch is trained again."""
        folder = self._folder
        try:
            folder.checkpoints.mkdir(exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot make {folder.checkpoints}: {error.strerror}: make room there") from None
        if self._owed is not None and not is_best:
            checkpoint.save(self._owed, folder.best)
        links = [folder.best] if is_best else []
        checkpoint.save(content, folder.checkpoint(step), links)
        self._owed = None
        try:
            replace_by_copy(folder.checkpoint(step), folder.last)
            folder.keep(self._keep, step)
        except OSError as error:
            raise UserError(f"cannot write {folder.last}: {error.strerror}: make room there") from None
