"""IDX files: what is read, and what each kind of damage is called."""

import gzip
import struct

import numpy as np
import pytest

from data.idx_files import idx_bytes
from mlaan.data.idx import read_idx
from mlaan.errors import UserError

ARRAY = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
WHOLE = idx_bytes(ARRAY)


def refused(folder, name="x", dimensions=3):
    with pytest.raises(UserError) as caught:
        read_idx(folder, name, dimensions, "do this")
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith("; do this")
    return message.removesuffix("; do this")


@pytest.mark.parametrize("zipped", [False, True])
def test_reads_plain_and_gzipped_files(tmp_path, zipped):
    file = tmp_path / ("x.gz" if zipped else "x")
    file.write_bytes(gzip.compress(WHOLE) if zipped else WHOLE)
    path, array = read_idx(tmp_path, "x", 3, "")
    assert path == file
    assert array.dtype == np.uint8
    assert array.tolist() == ARRAY.tolist()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "ends within its header: 0 bytes, expected at least 16"),
        (WHOLE[:15], "ends within its header: 15 bytes, expected at least 16"),
        (WHOLE[:-1], "is cut off: 23 bytes after the header, expected 24 for 2x3x4"),
        (WHOLE + b"\0", "goes on after its end: 25 bytes after the header, expected 24 for 2x3x4"),
        (
            idx_bytes(np.zeros(20)),
            "starts with 0x00000801, expected 0x00000803 for bytes in 3 dimensions",
        ),
        (gzip.compress(WHOLE, mtime=0), "starts with 0x1f8b0800, expected 0x00000803 for bytes in 3 dimensions"),
        (struct.pack(">I", 0xD03) + WHOLE[4:], "starts with 0x00000d03, expected 0x00000803 for bytes"),
    ],
)
def test_damage_in_a_plain_file(tmp_path, data, message):
    (tmp_path / "x").write_bytes(data)
    assert refused(tmp_path).startswith(f"{tmp_path / 'x'} {message}")


ZIPPED = gzip.compress(WHOLE, mtime=0)  # the tests' names hold these bytes, which must be each process's


@pytest.mark.parametrize(
    "data",
    [
        ZIPPED[:-9],
        ZIPPED[:12],
        ZIPPED[:-8] + b"\0" * 8,
        ZIPPED[:12] + b"\xff" * 8 + ZIPPED[20:],
        WHOLE,
        ZIPPED + b"more",
    ],
)
def test_damage_in_a_gzipped_file(tmp_path, data):
    (tmp_path / "x.gz").write_bytes(data)
    assert refused(tmp_path).startswith(f"{tmp_path / 'x.gz'} is a damaged gzip file (")


def test_an_empty_gzipped_file(tmp_path):
    (tmp_path / "x.gz").write_bytes(b"")
    assert "x.gz ends within its header: 0 bytes" in refused(tmp_path)


def test_a_missing_file_names_both_that_would_do(tmp_path):
    (tmp_path / "x").mkdir()
    assert refused(tmp_path) == f"{tmp_path} holds neither x nor x.gz"


def test_an_unreadable_file(tmp_path, monkeypatch):
    (tmp_path / "x").write_bytes(WHOLE)

    def deny(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.read_bytes", deny)
    assert refused(tmp_path) == f"cannot read {tmp_path / 'x'}: Permission denied"
