"""Skips, with the reason, the tests that need the native libraries where these cannot be there."""

import shutil

import pytest

from mlaan_kernels import library


@pytest.fixture(scope="session")
def native() -> None:
    """The CPU library is there: without it a comparison of the native form would be one of the reference with itself.

    Where it was switched off or no compiler is at hand the tests are skipped; anywhere else its absence is a failure.
    """
    cpu = library.status()[0]
    compiler = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    if cpu.state == "off" or (cpu.state == "missing" and compiler is None):
        pytest.skip(cpu.detail)
    assert cpu.state != "missing", f"{compiler} is here, but the library is not: {cpu.detail}"
