"""Arrays in .npz files without pickled objects."""

import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np


def load_arrays(path: Path, names: Iterable[str]) -> dict[str, np.ndarray]:
    """Some of a file's arrays, by name; the zip archive's own checksums are looked at.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it is damaged or lacks one of them; the message is one line on what is wrong.
    """
    try:
        with np.load(path, allow_pickle=False) as content:
            return {name: content[name] for name in names}
    except FileNotFoundError:
        raise
    # A changed byte makes zipfile complain of encryption (RuntimeError) and of versions to come, too.
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(" ".join(str(error).split())) from None
