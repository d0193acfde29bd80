"""No time for an operator whose tests do not pass in this very run."""

import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from benchmarks import ROOT

TESTS = ROOT / "tests" / "kernels"


class Outcome(NamedTuple):
    """How many tests of an operator passed, and how many did not."""

    passed: int
    failed: int


def outcome(report: Path, operator: str) -> Outcome:
    """What a JUnit report says of tests/kernels/test_<operator>*.py; (0, 0) without a whole report."""
    try:
        cases = list(ElementTree.parse(report).iter("testcase"))
    except (OSError, ElementTree.ParseError):
        return Outcome(0, 0)
    ours = [case for case in cases if case.get("classname", "").startswith(f"tests.kernels.test_{operator}")]
    failed = sum(case.find("failure") is not None or case.find("error") is not None for case in ours)
    skipped = sum(case.find("skipped") is not None for case in ours)
    return Outcome(len(ours) - failed - skipped, failed)


@cache
def refusal(operator: str, device: str, report: Path | None = None) -> str | None:
    """Why this operator's rows are refused; None where its tests passed.

    Args:
        report: of a run of the tests earlier in the same round; where it does not speak of the operator, or without
            one, the tests run now.
    """
    found = outcome(report, operator) if report else Outcome(0, 0)
    if found == Outcome(0, 0):
        found = _run(operator, device)
    if found.failed:
        return f"refused: {found.failed} of {operator}'s tests failed"
    return None if found.passed else f"refused: none of {operator}'s tests ran on {device}"


def _run(operator: str, device: str) -> Outcome:
    files = sorted(map(str, TESTS.glob(f"test_{operator}*.py")))
    if not files:
        return Outcome(0, 0)
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}"]
        command += ["-m", "gpu" if device == "cuda" else "not gpu", *files]
        code = subprocess.run(command, cwd=ROOT, capture_output=True).returncode
        found = outcome(report, operator)
    return found if code in (0, 1, 5) else Outcome(found.passed, max(found.failed, 1))  # stopped half-way
