"""Output that may end before the run does: the reader of a pipe goes away, a terminal closes, a log's disk is full."""

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO, cast

_MAY_PASS = (errno.ENOSPC, errno.EDQUOT, errno.EAGAIN, errno.EINTR)
"""What is tried again with the next line; after anything else nothing is written any more."""


class _Lasting:
    """A stream to which writing never fails; what else is asked of it, the real stream answers."""

    def __init__(self, stream: TextIO, name: str) -> None:
        self._stream, self._name = stream, name
        self._is_told = False

    def write(self, text: str) -> int:
        try:
            self._stream.write(text)
        except OSError as error:
            self._lost(error)
        return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._lost(error)

    def end(self) -> None:
        """A last try for what waits; after it, the stream is flushed without a complaint."""
        try:
            self._stream.flush()
        except OSError:
            to_nowhere(self._stream)

    def _lost(self, error: OSError) -> None:
        if error.errno not in _MAY_PASS:
            to_nowhere(self._stream)
        if not self._is_told and self._name == "stdout":
            self._is_told = True
            reason = error.strerror or error
            print(
                f"mlaan: stdout cannot be written ({reason}): the run goes on; see its metrics.jsonl", file=sys.stderr
            )

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def to_nowhere(stream: TextIO) -> None:
    """From now on nothing that is written to the stream, or waits in it, goes anywhere or fails."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


@contextlib.contextmanager
def lasting_output() -> Iterator[None]:
    """Inside, what is printed to stdout or stderr and cannot be written is left out; of stdout, stderr says so once."""
    real = sys.stdout, sys.stderr
    out, err = _Lasting(sys.stdout, "stdout"), _Lasting(sys.stderr, "stderr")
    sys.stdout, sys.stderr = cast(TextIO, out), cast(TextIO, err)
    try:
        yield
    finally:
        out.end()
        err.end()
        sys.stdout, sys.stderr = real
