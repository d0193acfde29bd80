"""What the micro benchmarks share: bandwidth, and the gate before every row."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.micro import gate
from benchmarks.micro.harness import Machine

START = pytest.StashKey[float]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--tests-report", type=Path, help="JUnit report of the operators' tests in the same round")
    parser.addoption("--budget", type=float, help="seconds after which no form is begun")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[START] = time.monotonic()


@pytest.fixture(scope="session")
def in_time(request: pytest.FixtureRequest) -> Callable[[], None]:
    """Skips the row when the time is up, so that those before it get into the results."""

    end = request.config.stash[START] + float(request.config.getoption("--budget") or "inf")

    def check() -> None:
        if time.monotonic() > end:
            pytest.skip("not measured: the time is up")

    return check


@pytest.fixture(scope="session")
def machine() -> Callable[[str], Machine]:
    """What a device can do, measured once."""
    return Machine.measured


@pytest.fixture(scope="session")
def admit(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Fails the row of an operator whose tests do not pass on a device."""
    report = request.config.getoption("--tests-report")

    def check(operator: str, device: str) -> None:
        if reason := gate.refusal(operator, device, report):
            pytest.fail(reason, pytrace=False)

    return check
