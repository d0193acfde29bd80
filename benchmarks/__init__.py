"""Measurements of whole training steps and of operators; `make bench` and `make gpu` run them.

The rival schedule is the very judge that the tests use, so that the two cannot drift apart.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TESTS = str(ROOT / "tests")

if TESTS not in sys.path:
    sys.path.append(TESTS)
