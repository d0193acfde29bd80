"""What the operators' tests share: poisoned memory, and a reason to skip where native libraries cannot be."""

import shutil
from collections.abc import Iterator

import pytest
import torch

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


@pytest.fixture(autouse=True)
def poisoned() -> Iterator[None]:
    """Fresh memory is full of NaN, or of the largest integer: what a kernel forgets to write shows."""
    before = torch.utils.deterministic.fill_uninitialized_memory  # a run on the CPU switches it off for its process
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = before
