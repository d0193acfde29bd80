"""The command line: one module for each command of `mlaan`."""

import errno
import io
import os
import sys
import warnings
from collections.abc import Sequence

from mlaan.cli.arguments import parse
from mlaan.errors import UserError
from mlaan.observe.lasting import to_nowhere


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and gives the process's exit status.

    0 done, 1 where a replayed step is finite after all, 2 for anything a person can mend (one line on stderr), 130 and
    143 after SIGINT and SIGTERM.
    """
    # PyTorch then asks Linux for huge pages: new memory on the CPU, such as each batch's, comes several times faster.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    sys.stdout, sys.stderr = (stream or open(os.devnull, "w") for stream in (sys.stdout, sys.stderr))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a file's name may hold bytes that are no text
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _one_line
            command, arguments, overrides = parse(sys.argv[1:] if argv is None else argv)
            status = command(arguments, overrides)
            sys.stdout.flush()
            return status
    except UserError as error:
        print(f"mlaan: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("mlaan: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of a pipe, such as `head`, went away
        to_nowhere(sys.stdout)
        return 1
    except OSError as error:
        if error.errno != errno.ENOSPC or error.filename is not None:
            raise
        to_nowhere(sys.stdout)
        print(f"mlaan: cannot write: {error.strerror}: make room there", file=sys.stderr)
        return 2


def _one_line(message: Warning | str, *_: object, **__: object) -> None:
    """A warning without the place in the code, which means nothing to a person at the command line."""
    print(f"mlaan: {message}", file=sys.stderr)
