"""Skips, with the reason, the tests that need the native libraries where they are not built."""

import pytest

from mlaan_kernels import library


@pytest.fixture
def native() -> None:
    """Without the library a comparison of the native form would be one of the reference with itself."""
    cpu = library.status()[0]
    if cpu.state in ("missing", "off"):
        pytest.skip(cpu.detail)
