"""Memory for images and activations in huge pages, where the system gives them to who asks."""

import subprocess
import sys
from pathlib import Path

import pytest

HUGE = Path("/sys/kernel/mm/transparent_hugepage/enabled")
CODE = """
import re, torch
from pathlib import Path
{before}
{begin}
memory = torch.ones(64 << 20, dtype=torch.uint8)
print(sum(map(int, re.findall(r"AnonHugePages: +([0-9]+) kB", Path("/proc/self/smaps").read_text()))))
"""
MAIN = "from mlaan.cli import main; main(['plan', '--model.name', 'resnet20', '--data.name', 'synthetic'])"


def huge_kilobytes(begin: str, before: str = "") -> int:
    code = CODE.format(begin=begin, before=before)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return int(done.stdout.splitlines()[-1])


@pytest.mark.skipif(
    not HUGE.exists() or "[madvise]" not in HUGE.read_text(), reason="huge pages are not for who asks for them here"
)
def test_a_command_asks_for_them_unless_a_person_says_otherwise():
    assert huge_kilobytes(MAIN) > 32 << 10
    assert huge_kilobytes(MAIN, "import os; os.environ['THP_MEM_ALLOC_ENABLE'] = '0'") < 8 << 10
