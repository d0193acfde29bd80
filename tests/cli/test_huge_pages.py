"""Memory for images and activations is asked for in huge pages."""

import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
import re, torch
from pathlib import Path
{before}
{begin}
memory = torch.ones(64 << 20, dtype=torch.uint8)
mappings = re.split(r"(?m)^(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text())
asked = [mapping for mapping in mappings if re.search(r"VmFlags:.* hg", mapping)]  # whether or not the system had some
print(sum(int(re.search(r"Size: +([0-9]+) kB", mapping)[1]) for mapping in asked))
"""
MAIN = "from mlaan.cli import main; main(['plan', '--model.name', 'resnet20', '--data.name', 'synthetic'])"


def asked_for_kilobytes(begin: str, before: str = "") -> int:
    code = CODE.format(begin=begin, before=before)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return int(done.stdout.splitlines()[-1])


@pytest.mark.skipif(
    not Path("/sys/kernel/mm/transparent_hugepage/enabled").exists(), reason="this system has no huge pages"
)
def test_a_command_asks_for_them_unless_a_person_says_otherwise():
    assert asked_for_kilobytes(MAIN) >= 60 << 10
    assert asked_for_kilobytes(MAIN, "import os; os.environ['THP_MEM_ALLOC_ENABLE'] = '0'") == 0
