"""docs/adding_an_op.md, followed to the letter in a copy of the operators: its tests pass, its kernels may ship."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "adding_an_op.md").read_text(encoding="utf-8")
FILE = r"`((?:kernels|tests)/[\w/]+\.py)`"
BLOCK = r"```python\n(.*?)```"


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The operators and what their tests share, and the page's files where it says that they go."""
    root = tmp_path_factory.mktemp("checkout")
    for folder, leave in (("kernels", ("lib", "__pycache__")), ("benchmarks", ("__pycache__", "results"))):
        shutil.copytree(ROOT / folder, root / folder, ignore=shutil.ignore_patterns(*leave))
    (root / "tests" / "kernels").mkdir(parents=True)
    for shared in ("pyproject.toml", "tests/conftest.py", "tests/kernels/conftest.py", "tests/kernels/forms.py"):
        shutil.copy(ROOT / shared, root / shared)
    for name, source in page_files().items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(source, encoding="utf-8")
    return root


def page_files() -> dict[str, str]:
    """Each code block under the file that the words before it name."""
    files, before = {}, ""
    for words, source in re.findall(rf"(.*?){BLOCK}", PAGE, re.DOTALL):
        [before] = re.findall(FILE, words)
        files[before] = source
    return files


def run(copy: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """In the copy, whose operators come before those that are installed."""
    variables = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"} | environment
    variables["PYTHONPATH"] = os.pathsep.join([str(copy / "kernels"), str(copy)])
    return subprocess.run([sys.executable, *arguments], cwd=copy, env=variables, capture_output=True, text=True)


def test_five_steps():
    assert re.findall(r"^## (\d)\.", PAGE, re.MULTILINE) == list("12345")
    folder = "kernels/mlaan_kernels/relu_scale"
    assert list(page_files()) == [
        *(f"{folder}/{name}.py" for name in ("reference", "triton", "autograd", "__init__")),
        "tests/kernels/test_relu_scale.py",
    ]


def test_the_pages_tests_pass(copy):
    done = run(copy, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/kernels/test_relu_scale.py")
    assert done.returncode == 0, done.stdout
    assert re.search(r"^\d{2} passed", done.stdout.splitlines()[-1]), done.stdout


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("mask = (row < M)[:, None] & (col < C)[None, :]", "mask = (row < M)[:, None] & (col < C - 1)[None, :]"),
        ("tl.sum(tl.maximum(x, 0.0) * dy, axis=0)", "tl.sum(x * dy, axis=0)"),
    ],
    ids=["mask", "sum"],
)
def test_the_pages_tests_can_fail(copy, right, wrong):
    file = copy / "kernels" / "mlaan_kernels" / "relu_scale" / "triton.py"
    source = file.read_text()
    assert right in source
    try:
        file.write_text(source.replace(right, wrong))
        command = ("-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "tests/kernels/test_relu_scale.py")
        done = run(copy, *command, PYTHONDONTWRITEBYTECODE="1")
    finally:
        file.write_text(source)
    assert done.returncode == 1, done.stdout


def test_the_kernels_may_ship(copy):
    done = run(copy, "-m", "benchmarks.resources", "--op", "relu_scale", "--processes", "1")
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"^\| (?:forward|backward)_kernel \|", done.stdout, re.MULTILINE)) == 12


def test_the_page_is_in_style(copy):
    ruff = shutil.which("ruff", path=str(Path(sys.executable).parent)) or shutil.which("ruff")
    if ruff is None:
        pytest.skip("ruff is not installed")
    files = [str(copy / name) for name in page_files()]
    for command in (("check",), ("format", "--check")):
        done = subprocess.run([ruff, *command, *files], cwd=copy, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
